//! Adds up what the test programs report. Pure.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fmt;
use std::ops::AddAssign;

/// How many tests had which outcome. Its display is the closing line of `cargo xtask test`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
}

impl Tally {
    /// What one test program wrote, whether it ended well, and the skips that it recorded.
    ///
    /// libtest counts a test that skipped itself as passed; the record corrects that. A program
    /// that ended badly without a failed test (a crash, a time limit) counts as one failure.
    pub(crate) fn of_program(output: &str, ended_well: bool, skips: &str) -> Self {
        let mut tally = Self::default();
        let mut reported = false;
        for line in output.lines().filter_map(|line| line.trim().strip_prefix("test result: ")) {
            reported = true;
            tally.passed += number_before(line, " passed");
            tally.failed += number_before(line, " failed");
            tally.skipped += number_before(line, " ignored");
        }
        let recorded = skips.lines().filter_map(|line| line.split_once(": ").map(|(name, _)| name));
        let recorded = recorded.collect::<BTreeSet<_>>().len().min(tally.passed);
        tally.passed -= recorded;
        tally.skipped += recorded;
        if tally.failed == 0 && !(ended_well && reported) {
            tally.failed = 1;
        }
        tally
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// The number that stands directly before `word`; 0 when there is none.
fn number_before(line: &str, word: &str) -> usize {
    let before = line.find(word).map_or("", |at| &line[..at]);
    before.rsplit(|c: char| !c.is_ascii_digit()).next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::Tally;

    const GOOD: &str = "running 3 tests\ntest result: ok. 12 passed; 0 failed; 2 ignored; \
                        0 measured; 5 filtered out; finished in 0.16s\n";

    #[test]
    fn sums_every_result_line() {
        let twice = format!("{GOOD}{GOOD}");
        let tally = Tally::of_program(&twice, true, "");
        assert_eq!(tally.to_string(), "24 passed, 0 failed, 4 skipped");
    }

    #[test]
    fn a_recorded_skip_is_no_pass_and_is_counted_once() {
        let skips = "m::a: no root\nm::a: no root\nm::b: no memcached\n";
        let tally = Tally::of_program(GOOD, true, skips);
        assert_eq!(tally, Tally { passed: 10, failed: 0, skipped: 4 });
    }

    #[test]
    fn a_crash_or_an_early_end_is_a_failure() {
        assert_eq!(Tally::of_program("running 3 tests\n", false, "").failed, 1);
        assert_eq!(Tally::of_program("", true, "").failed, 1);
        assert_eq!(Tally::of_program(GOOD, false, "").failed, 1);
        let bad = "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured\n";
        assert_eq!(Tally::of_program(bad, false, "").failed, 2);
    }
}
