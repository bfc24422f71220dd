//! The filter, run as the kernel runs it, and what it says of each call.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use seccompiler::BpfProgram;

use super::{CALLS, CALLS_JUDGED, CALLS_OF_MACHINE, CALLS_OF_URING, filter};

const PID: u32 = 4711;
/// What the kernel calls this machine (linux/audit.h).
#[cfg(target_arch = "x86_64")]
const MACHINE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const MACHINE: u32 = 0xc000_00b7;

const ALLOW: u32 = 0x7fff_0000;
const NOT_THERE: u32 = 0x0005_0000 | libc::ENOSYS as u32;

/// What the kernel makes of the program for a call: bpf(4)'s machine, as far as seccomp(2) has it.
fn verdict(program: &BpfProgram, call: i64, arguments: &[u64]) -> u32 {
    let mut data = [0_u32; 16];
    (data[0], data[1]) = (call as u32, MACHINE);
    for (words, argument) in data[4..].chunks_mut(2).zip(arguments) {
        (words[0], words[1]) = (*argument as u32, (argument >> 32) as u32);
    }
    let (mut at, mut accumulator) = (0, 0);
    loop {
        let step = &program[at];
        at += 1;
        let jump = |taken: bool| usize::from(if taken { step.jt } else { step.jf });
        match step.code {
            0x20 => accumulator = data[step.k as usize / 4],
            0x54 => accumulator &= step.k,
            0x05 => at += step.k as usize,
            0x15 => at += jump(accumulator == step.k),
            0x25 => at += jump(accumulator > step.k),
            0x35 => at += jump(accumulator >= step.k),
            0x06 => return step.k,
            other => panic!("{other:#x} is not done here"),
        }
    }
}

#[test]
fn what_serving_needs_may_be_called_and_nothing_else() {
    let judged: Vec<i64> = CALLS_JUDGED.iter().map(|(_, call)| *call).collect();
    for uring in [false, true] {
        let program = filter(PID, uring).unwrap();
        let of_uring = CALLS_OF_URING.iter().filter(|_| uring);
        let free = CALLS.iter().chain(CALLS_OF_MACHINE).chain(of_uring);
        let free: Vec<i64> = free.map(|(_, call)| *call).collect();
        for call in (0..1024).filter(|call| !judged.contains(call)) {
            let expected = if free.contains(&call) { ALLOW } else { NOT_THERE };
            assert_eq!(verdict(&program, call, &[u64::MAX; 6]), expected, "system call {call}");
        }
    }
}

#[test]
fn some_calls_depend_on_their_arguments() {
    let program = filter(PID, false).unwrap();
    let (read, write, code) = (libc::PROT_READ as u64, libc::PROT_WRITE as u64, 4);
    let thread =
        (libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_SIGHAND | libc::CLONE_THREAD) as u64;
    let process = libc::SIGCHLD as u64;
    let rows: &[(i64, &[u64], bool)] = &[
        (libc::SYS_mmap, &[0, 4096, read | write], true),
        (libc::SYS_mmap, &[0, 4096, read | code], false),
        (libc::SYS_mmap, &[0, 4096, code], false),
        (libc::SYS_mprotect, &[4096, 4096, read], true),
        (libc::SYS_mprotect, &[4096, 4096, read | code], false),
        (libc::SYS_mprotect, &[4096, 4096, read | write | code], false),
        (libc::SYS_clone, &[thread], true),
        (libc::SYS_clone, &[process], false),
        (libc::SYS_clone, &[process | libc::CLONE_NEWUSER as u64], false),
        (libc::SYS_prctl, &[libc::PR_SET_NAME as u64], true),
        (libc::SYS_prctl, &[libc::PR_SET_DUMPABLE as u64, 1], false),
        (libc::SYS_prctl, &[libc::PR_SET_SECCOMP as u64, 2], false),
        (libc::SYS_socketpair, &[libc::AF_UNIX as u64], true),
        (libc::SYS_socketpair, &[libc::AF_NETLINK as u64], false),
        (libc::SYS_ioctl, &[1, libc::FIONBIO], true),
        (libc::SYS_ioctl, &[1, libc::TIOCSTI], false),
        (libc::SYS_prlimit64, &[0, 7, 0, 1], true),
        (libc::SYS_prlimit64, &[0, 7, 1, 0], false),
        (libc::SYS_prlimit64, &[1, 7, 0, 1], false),
        (libc::SYS_tgkill, &[PID.into(), 1, 6], true),
        (libc::SYS_tgkill, &[1, 1, 6], false),
    ];
    for (call, arguments, allowed) in rows {
        let expected = if *allowed { ALLOW } else { NOT_THERE };
        assert_eq!(verdict(&program, *call, arguments), expected, "{call}: {arguments:x?}");
    }
}

#[test]
fn a_program_for_another_kind_of_machine_is_ended() {
    let program = filter(PID, false).unwrap();
    // The first step reads the machine: what i386 would call `read` is something else here.
    let mut foreign = program.clone();
    foreign[0].k = 0;
    assert_eq!(verdict(&foreign, 3, &[]), 0x8000_0000);
}
