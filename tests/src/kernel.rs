//! Which kernel this is, for tests of what older ones do not have.
#![forbid(unsafe_code)]

/// Whether the running kernel is older than `major.minor`.
///
/// # Panics
/// When the kernel does not say.
#[must_use]
pub fn is_before(major: u32, minor: u32) -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("/proc is mounted");
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let mut next = || numbers.next().and_then(Result::ok).expect("a version of two numbers");
    (next(), next()) < (major, minor)
}
