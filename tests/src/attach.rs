//! Attaching a loaded program to an interface, for as long as a value lives.
#![forbid(unsafe_code)]

use anyhow::{Context as _, Result, bail};
use aya::Ebpf;
use aya::programs::tc::SchedClassifierLink;
use aya::programs::xdp::{XdpLink, XdpMode};
use aya::programs::{Program, SchedClassifier, TcAttachType, Xdp};

/// Where a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// XDP in the driver.
    Native,
    /// XDP above the driver, on socket buffers.
    Generic,
    /// tcx ingress.
    Tcx,
}

/// An attached program. Dropping it detaches.
#[derive(Debug)]
#[must_use]
pub enum Attachment {
    /// In either XDP mode.
    Xdp(XdpLink),
    /// At tcx.
    Tcx(SchedClassifierLink),
}

/// Attaches a program of an object, loading it first if need be. The calling thread must be in
/// the namespace of the interface.
///
/// # Errors
/// When the object has no such program, or the kernel refuses.
pub fn attach(ebpf: &mut Ebpf, name: &str, interface: &str, mode: Mode) -> Result<Attachment> {
    let program = ebpf.program_mut(name).with_context(|| format!("no program {name}"))?;
    match (program, mode) {
        (Program::Xdp(program), Mode::Native | Mode::Generic) => {
            let mode = if mode == Mode::Native { XdpMode::Driver } else { XdpMode::Skb };
            let link = load_and_attach_xdp(program, interface, mode)?;
            Ok(Attachment::Xdp(program.take_link(link)?))
        }
        (Program::SchedClassifier(program), Mode::Tcx) => {
            if program.fd().is_err() {
                SchedClassifier::load(program)?;
            }
            let link = program.attach(interface, TcAttachType::Ingress)?;
            Ok(Attachment::Tcx(program.take_link(link)?))
        }
        _ => bail!("{name} cannot be attached as {mode:?}"),
    }
}

fn load_and_attach_xdp(
    program: &mut Xdp,
    interface: &str,
    mode: XdpMode,
) -> Result<aya::programs::xdp::XdpLinkId> {
    if program.fd().is_err() {
        program.load()?;
    }
    Ok(program.attach(interface, mode)?)
}
