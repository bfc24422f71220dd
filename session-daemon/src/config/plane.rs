//! `--kernel-plane`: what it says and what it goes together with.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use crate::config::{Config, EXIT_USAGE, GuardKind, Refusal};
use crate::server::binding::Binding;

/// `--kernel-plane`: the kernel answers datagrams from the store, as long as the daemon runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KernelPlane {
    /// No longer than it runs.
    Ends,
    /// `=persist`: and while it is started again.
    Persists,
}

fn usage<T>(text: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::new(EXIT_USAGE, text.into()))
}

/// What stands behind `--kernel-plane`; nothing, or `=persist`.
pub(super) fn kernel_plane(text: &str) -> Result<KernelPlane, Refusal> {
    match text {
        "" => Ok(KernelPlane::Ends),
        "persist" => Ok(KernelPlane::Persists),
        _ => usage(format!(
            "--kernel-plane={text}: write --kernel-plane, or --kernel-plane=persist for answers \
             while the daemon is started again"
        )),
    }
}

/// Checks it against the other flags.
pub(super) fn check(config: &Config) -> Result<(), Refusal> {
    if config.kernel_plane.is_none() {
        return Ok(());
    }
    if config.udp_port == 0 {
        return usage("--kernel-plane answers datagrams: it needs -U");
    }
    if config.guard != GuardKind::Xdp {
        return usage("--kernel-plane stands behind the guard: it needs --guard=xdp");
    }
    if config.memory_file.is_some() {
        return usage(
            "--kernel-plane keeps the items in memory of the kernel, where the next start finds \
             them as in a memory file; leave -e out",
        );
    }
    if config.binding == Binding::Binary {
        return usage("--kernel-plane knows the text protocol alone; leave -B binary out");
    }
    if config.debug_commands {
        return usage(
            "--kernel-plane goes by the kernel's clock, which debugtime does not move; leave \
             -o relaxed_privileges out",
        );
    }
    Ok(())
}
