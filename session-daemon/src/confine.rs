//! What the serving process may still ask of the kernel: a filter of system calls (seccomp(2)), and
//! no file by name but what the kernel tells of itself (landlock(7)).
//!
//! It reads what anybody on the allowlist sends. Whoever took it over through a fault would have
//! the items and the clients' sockets, and finds no way further: no program to run, no socket to
//! make, no file to open, no process to look into, no memory to write code to. All that serving
//! needs is opened by the parent and handed over.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use landlock::{
    ABI, Access, AccessFs, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus,
    path_beneath_rules,
};
use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter_all_threads,
};

/// A system call by its name, as systemd.exec(5) and strace(1) have it, and by its number.
pub type Call = (&'static str, c_long);

/// What may be called with any arguments.
pub const CALLS: &[Call] = &[
    ("read", libc::SYS_read),
    ("write", libc::SYS_write),
    ("readv", libc::SYS_readv),
    ("writev", libc::SYS_writev),
    ("pread64", libc::SYS_pread64),
    ("pwrite64", libc::SYS_pwrite64),
    ("sendto", libc::SYS_sendto),
    ("recvfrom", libc::SYS_recvfrom),
    ("sendmsg", libc::SYS_sendmsg),
    ("recvmsg", libc::SYS_recvmsg),
    ("sendmmsg", libc::SYS_sendmmsg),
    ("recvmmsg", libc::SYS_recvmmsg),
    ("accept4", libc::SYS_accept4),
    ("shutdown", libc::SYS_shutdown),
    ("getsockopt", libc::SYS_getsockopt),
    ("setsockopt", libc::SYS_setsockopt),
    ("getsockname", libc::SYS_getsockname),
    ("getpeername", libc::SYS_getpeername),
    ("close", libc::SYS_close),
    ("fcntl", libc::SYS_fcntl),
    ("dup", libc::SYS_dup),
    ("eventfd2", libc::SYS_eventfd2),
    ("lseek", libc::SYS_lseek),
    ("fstat", libc::SYS_fstat),
    ("newfstatat", libc::SYS_newfstatat),
    ("statx", libc::SYS_statx),
    ("openat", libc::SYS_openat),
    ("getdents64", libc::SYS_getdents64),
    ("readlinkat", libc::SYS_readlinkat),
    ("epoll_create1", libc::SYS_epoll_create1),
    ("epoll_ctl", libc::SYS_epoll_ctl),
    ("epoll_pwait", libc::SYS_epoll_pwait),
    ("ppoll", libc::SYS_ppoll),
    ("munmap", libc::SYS_munmap),
    ("mremap", libc::SYS_mremap),
    ("madvise", libc::SYS_madvise),
    ("brk", libc::SYS_brk),
    ("mincore", libc::SYS_mincore),
    ("msync", libc::SYS_msync),
    ("mlock", libc::SYS_mlock),
    ("munlock", libc::SYS_munlock),
    ("mlockall", libc::SYS_mlockall),
    ("munlockall", libc::SYS_munlockall),
    ("memfd_create", libc::SYS_memfd_create),
    ("ftruncate", libc::SYS_ftruncate),
    ("fallocate", libc::SYS_fallocate),
    ("membarrier", libc::SYS_membarrier),
    ("futex", libc::SYS_futex),
    ("set_robust_list", libc::SYS_set_robust_list),
    ("rseq", libc::SYS_rseq),
    ("rt_sigaction", libc::SYS_rt_sigaction),
    ("rt_sigprocmask", libc::SYS_rt_sigprocmask),
    ("rt_sigreturn", libc::SYS_rt_sigreturn),
    ("sigaltstack", libc::SYS_sigaltstack),
    ("restart_syscall", libc::SYS_restart_syscall),
    ("exit", libc::SYS_exit),
    ("exit_group", libc::SYS_exit_group),
    ("getpid", libc::SYS_getpid),
    ("getppid", libc::SYS_getppid),
    ("gettid", libc::SYS_gettid),
    ("getuid", libc::SYS_getuid),
    ("geteuid", libc::SYS_geteuid),
    ("getgid", libc::SYS_getgid),
    ("getegid", libc::SYS_getegid),
    ("uname", libc::SYS_uname),
    ("sysinfo", libc::SYS_sysinfo),
    ("getrusage", libc::SYS_getrusage),
    ("getcpu", libc::SYS_getcpu),
    ("sched_yield", libc::SYS_sched_yield),
    ("sched_getaffinity", libc::SYS_sched_getaffinity),
    ("nanosleep", libc::SYS_nanosleep),
    ("clock_nanosleep", libc::SYS_clock_nanosleep),
    ("clock_gettime", libc::SYS_clock_gettime),
    ("clock_getres", libc::SYS_clock_getres),
    ("gettimeofday", libc::SYS_gettimeofday),
    ("getrandom", libc::SYS_getrandom),
];

/// And those that only this machine's kind has.
#[cfg(target_arch = "x86_64")]
pub const CALLS_OF_MACHINE: &[Call] = &[
    ("epoll_wait", libc::SYS_epoll_wait),
    ("poll", libc::SYS_poll),
    ("accept", libc::SYS_accept),
    ("dup2", libc::SYS_dup2),
    ("time", libc::SYS_time),
    ("getrlimit", libc::SYS_getrlimit),
];
#[cfg(not(target_arch = "x86_64"))]
pub const CALLS_OF_MACHINE: &[Call] = &[];

/// What may be called where io_uring serves. The filter does not see what a ring is asked to do.
pub const CALLS_OF_URING: &[Call] = &[
    ("io_uring_setup", libc::SYS_io_uring_setup),
    ("io_uring_enter", libc::SYS_io_uring_enter),
    ("io_uring_register", libc::SYS_io_uring_register),
];

/// What may be called with some arguments: memory without code, threads and no processes, names of
/// threads, sockets that reach nobody, questions to descriptors, limits read and not set, signals
/// to this process alone.
pub const CALLS_JUDGED: &[Call] = &[
    ("mmap", libc::SYS_mmap),
    ("mprotect", libc::SYS_mprotect),
    ("clone", libc::SYS_clone),
    ("prctl", libc::SYS_prctl),
    ("socketpair", libc::SYS_socketpair),
    ("ioctl", libc::SYS_ioctl),
    ("prlimit64", libc::SYS_prlimit64),
    ("tgkill", libc::SYS_tgkill),
];

/// Where the kernel tells of the process's control group, and of memory and processors.
const READABLE: [&str; 2] = ["/proc", "/sys"];

/// What stands between the process and files that it would open by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Files {
    /// None can be opened but those of `/proc` and `/sys`, and those to be read only.
    Closed,
    /// The kernel has no Landlock (before 5.13, or not enabled): users and modes decide.
    AsTheUser,
}

/// Lets this thread, and all threads that it starts, open no file but to read what the kernel
/// tells, make none and remove none, for good. What is open stays open.
///
/// # Errors
/// Those of the kernel, but for having no Landlock. `no_new_privs` must be set.
pub fn close_files() -> Result<Files> {
    let ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V3))?
        .create()?
        .add_rules(path_beneath_rules(READABLE, AccessFs::ReadFile | AccessFs::ReadDir))?;
    Ok(match ruleset.restrict_self()?.ruleset {
        RulesetStatus::NotEnforced => Files::AsTheUser,
        RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced => Files::Closed,
    })
}

/// Leaves this process, with all its threads, the calls of [`CALLS`], [`CALLS_OF_MACHINE`],
/// [`CALLS_JUDGED`] and, if it is to have `uring`, [`CALLS_OF_URING`], for good. Another fails with ENOSYS, which C libraries take for an older
/// kernel; nothing is killed for trying.
///
/// It costs each system call some 20 to 60 ns, which is why it is asked for (`-o drop_privileges`).
///
/// # Errors
/// The kernel has no filters of system calls, or `no_new_privs` is not set.
pub fn filter_calls(uring: bool) -> Result<()> {
    let program = filter(std::process::id(), uring)?;
    apply_filter_all_threads(&program).context("installing the filter of system calls")
}

/// The filter for the process `pid`.
fn filter(pid: u32, uring: bool) -> Result<BpfProgram> {
    let of_uring = CALLS_OF_URING.iter().filter(|_| uring);
    let free = CALLS.iter().chain(CALLS_OF_MACHINE).chain(of_uring);
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        free.map(|(_, call)| (*call, Vec::new())).collect();
    for (name, call) in CALLS_JUDGED {
        rules.insert(*call, judged(name, pid)?);
    }
    let refused = SeccompAction::Errno(libc::ENOSYS as u32);
    let machine = TargetArch::try_from(std::env::consts::ARCH)?;
    let filter = SeccompFilter::new(rules, refused, SeccompAction::Allow, machine)?;
    Ok(filter.try_into()?)
}

/// The ways in which a call of [`CALLS_JUDGED`] is let through; one of them must hold.
fn judged(name: &str, pid: u32) -> Result<Vec<SeccompRule>> {
    let any = |argument, values: &[u64]| -> Result<Vec<SeccompRule>> {
        values.iter().map(|value| rule(&[(argument, SeccompCmpOp::Eq, *value)])).collect()
    };
    let without = |argument, bit| (argument, SeccompCmpOp::MaskedEq(bit), 0);
    Ok(match name {
        // Their third argument says what the memory is for.
        "mmap" | "mprotect" => vec![rule(&[without(2, libc::PROT_EXEC as u64)])?],
        "clone" => {
            let thread = libc::CLONE_THREAD as u64;
            vec![rule(&[(0, SeccompCmpOp::MaskedEq(thread), thread)])?]
        }
        "prctl" => any(0, &[libc::PR_SET_NAME as u64, libc::PR_SET_VMA as u64])?,
        "socketpair" => any(0, &[libc::AF_UNIX as u64])?,
        "ioctl" => any(1, &[libc::FIONBIO, libc::FIONREAD, libc::TIOCOUTQ, libc::TCGETS])?,
        // Of this process, and with no new limit.
        "prlimit64" => vec![rule(&[(0, SeccompCmpOp::Eq, 0), (2, SeccompCmpOp::Eq, 0)])?],
        "tgkill" => any(0, &[pid.into()])?,
        _ => bail!("{name}: nothing says how it is judged"),
    })
}

/// Arguments by number. What must be nothing is nothing in all 64 bits; of numbers the kernel reads
/// the lower half.
fn rule(conditions: &[(u8, SeccompCmpOp, u64)]) -> Result<SeccompRule> {
    let conditions = conditions.iter().map(|(argument, compare, value)| {
        let width = match *value {
            0 => SeccompCmpArgLen::Qword,
            _ => SeccompCmpArgLen::Dword,
        };
        SeccompCondition::new(*argument, width, compare.clone(), *value)
    });
    Ok(SeccompRule::new(conditions.collect::<Result<_, _>>()?)?)
}

#[cfg(test)]
mod tests;
