//! The compiled guard: loaded once, over pinned maps or new ones; its programs loaded as needed.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfError, EbpfLoader};
use caps::Capability;
use rustix::io::Errno;

use crate::capability::with_capability;
use crate::guard::Mode;
use crate::guard::error::GuardError;
use crate::guard::maps::{Maps, SPECS};
use crate::guard::pins::{MAPS, Pins};
use crate::sys;

/// The object kept in the repository, or the one that the build was told to use.
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("SESSION_GUARD_OBJECT"));

/// The kernel plane's, which is loaded for `--kernel-plane` alone.
pub(super) static PLANE_OBJECT: &[u8] = aya::include_bytes_aligned!(env!("SESSION_PLANE_OBJECT"));

/// A program in the kernel.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) id: u32,
    fd: OwnedFd,
}

impl Loaded {
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Why the kernel does not take a program.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) text: String,
    /// It takes a capability more. (What the verifier refuses is EACCES, not EPERM.)
    pub(super) not_permitted: bool,
    /// The verifier refuses it: an older one may take it from a loader with CAP_PERFMON.
    not_verified: bool,
}

impl From<&str> for Refusal {
    fn from(text: &str) -> Self {
        Self { text: text.to_owned(), not_permitted: false, not_verified: false }
    }
}

/// The guard's programs.
#[derive(Debug)]
pub(super) struct Programs {
    object: Ebpf,
    /// By name in the object; an error is kept, because the kernel's answer will not change.
    loaded: BTreeMap<&'static str, Result<Loaded, Refusal>>,
}

/// Opens the object over the pinned maps, or makes new ones that are not pinned yet.
pub(super) fn open(pins: &Pins, pinned: Option<&[u32]>) -> Result<(Programs, Maps), GuardError> {
    let mut loader = EbpfLoader::new();
    if pinned.is_some() {
        for spec in &SPECS {
            loader.map_pin_path(spec.name, pins.path(MAPS, spec.name));
        }
    }
    let mut object = loader.load(OBJECT).map_err(|error| object_error(&error))?;
    let maps = Maps::take(&mut object)?;
    // What was inspected is what was opened.
    if pinned.is_some_and(|ids| !maps.ids().eq(ids.iter().copied())) {
        let error = "the pinned maps changed while they were opened".to_owned();
        return Err(GuardError::Load { what: "maps".to_owned(), error });
    }
    Ok((Programs { object, loaded: BTreeMap::new() }, maps))
}

impl Programs {
    /// The program for a mode, loaded on first use; else why the kernel refuses it.
    pub(super) fn for_mode(&mut self, mode: Mode) -> Result<&Loaded, Refusal> {
        self.named(program_name(mode))
    }

    /// A mode's program in the kernel once more, in place of the one that [`Programs::for_mode`]
    /// gave; that one lives as long as its links.
    pub(super) fn load_again(&mut self, mode: Mode) -> Result<&Loaded, Refusal> {
        let name = program_name(mode);
        if let Some(Program::SchedClassifier(program)) = self.object.program_mut(name) {
            program.unload().map_err(|error| program_error(&error))?;
        }
        let again = load(&mut self.object, name)?;
        self.loaded.insert(name, Ok(again));
        self.for_mode(mode)
    }

    /// The program for listening sockets, loaded on first use; else why the kernel refuses it.
    pub(super) fn for_sockets(&mut self) -> Result<&Loaded, Refusal> {
        self.named(SOCKET_PROGRAM)
    }

    fn named(&mut self, name: &'static str) -> Result<&Loaded, Refusal> {
        if !self.loaded.contains_key(name) {
            let outcome = load(&mut self.object, name);
            self.loaded.insert(name, outcome);
        }
        self.loaded[name].as_ref().map_err(Clone::clone)
    }

    /// Names and handles of the programs that are in the kernel.
    pub(super) fn loaded(&self) -> impl Iterator<Item = (&'static str, &Loaded)> {
        self.loaded.iter().filter_map(|(name, loaded)| Some((*name, loaded.as_ref().ok()?)))
    }
}

/// Name of the program for listening sockets.
const SOCKET_PROGRAM: &str = "guard_socket";

/// Name of a mode's program in the object and among the pins.
pub(super) const fn program_name(mode: Mode) -> &'static str {
    match mode {
        Mode::NativeFrags => "guard_frags",
        Mode::Native | Mode::Generic => "guard",
        Mode::Tcx => "guard_tcx",
    }
}

/// Without CAP_PERFMON where that will do. Without it Linux 5.10 lets nobody compare packet
/// pointers, and 6.1 is stricter about the stack than 6.12.
pub(super) fn load(object: &mut Ebpf, name: &str) -> Result<Loaded, Refusal> {
    match load_as_is(object, name) {
        Err(refusal) if refusal.not_verified => {
            let again = with_capability(Capability::CAP_PERFMON, || load_as_is(object, name));
            again.map_err(|refusal| Refusal {
                text: format!("{}; Linux before 6.12 wants CAP_PERFMON as well", refusal.text),
                ..refusal
            })
        }
        outcome => outcome,
    }
}

pub(super) fn load_as_is(object: &mut Ebpf, name: &str) -> Result<Loaded, Refusal> {
    let program = object.program_mut(name).ok_or("not in the object")?;
    let fd = match program {
        Program::Xdp(program) => program.load().and_then(|()| clone(program.fd()?)),
        Program::SchedClassifier(program) => program.load().and_then(|()| clone(program.fd()?)),
        Program::SocketFilter(program) => program.load().and_then(|()| clone(program.fd()?)),
        _ => return Err("of another type in the object".into()),
    };
    let fd = fd.map_err(|error| program_error(&error))?;
    let (id, _) = sys::program_facts(fd.as_fd())
        .map_err(|error| Refusal::from(error.to_string().as_str()))?;
    Ok(Loaded { id, fd })
}

fn clone(fd: &aya::programs::ProgramFd) -> Result<OwnedFd, ProgramError> {
    fd.as_fd().try_clone_to_owned().map_err(ProgramError::IOError)
}

/// The end of the verifier's log says why.
fn program_error(error: &ProgramError) -> Refusal {
    let ProgramError::LoadError { io_error, verifier_log } = error else {
        return Refusal::from(format!("load: {error}").as_str());
    };
    let log = verifier_log.to_string();
    let statistics = ["processed ", "stack depth ", "verification time "];
    let last = log.lines().rev().find(|line| !statistics.iter().any(|word| line.starts_with(word)));
    let last = last.unwrap_or("");
    Refusal {
        text: format!("load: {io_error} {last}").trim_end().to_owned(),
        not_permitted: io_error.raw_os_error() == Some(Errno::PERM.raw_os_error()),
        not_verified: io_error.raw_os_error() == Some(Errno::ACCESS.raw_os_error()),
    }
}

fn object_error(error: &EbpfError) -> GuardError {
    let cause = match error {
        EbpfError::MapError(error) => crate::guard::maps::io_error(error),
        _ => None,
    };
    if cause.is_some_and(|cause| cause.kind() == std::io::ErrorKind::PermissionDenied) {
        return GuardError::NotPermitted {
            what: "making the guard's maps".to_owned(),
            capabilities: "CAP_BPF and CAP_NET_ADMIN",
        };
    }
    GuardError::Load { what: "maps".to_owned(), error: text_of(error) }
}

/// An error with all that it came of.
pub(super) fn text_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
