//! `cargo xtask bench instructions`: how many instructions each kind of request takes between its
//! read and its reply, beside what was recorded. The counts are callgrind's, so that neither the
//! machine nor what else it does matters; which functions grew is told with them.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::callgrind;
use crate::{packages, shell};

/// The program that runs one stream.
const PROGRAM: &str = "session-instructions";
/// The function of it that is counted.
const COUNTED: &str = "session_instructions::measured";
/// The profile that it is built in.
const PROFILE: &str = "instructions";
/// Growth beyond this share of what was recorded is a failure.
const GROWTH_MAX: f64 = 0.03;
/// How the recorded numbers are renewed.
const RECORD: &str = "cargo xtask bench instructions --record";
/// Functions that are named where a stream grew.
const NAMED_MAX: usize = 8;
/// Functions below this share of their stream are not recorded one by one.
const RECORDED_SHARE_MIN: f64 = 0.002;

/// Options of the command.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Record what is counted now instead of comparing with it
    #[arg(long)]
    record: bool,
}

/// What a stream took.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Count {
    /// The compiler, without whose own version the numbers say nothing.
    rustc: String,
    requests: u64,
    instructions: u64,
    /// Instructions of the functions that matter, without those they call.
    functions: BTreeMap<String, u64>,
}

/// Runs the command.
pub(super) fn run(options: &Options) -> Result<ExitCode> {
    packages::ensure(&["valgrind"]);
    if shell::find("valgrind").is_none() {
        ensure!(!options.record, "no valgrind: apt-get install valgrind");
        println!("SKIPPED: no instruction is counted without valgrind (apt-get install valgrind)");
        return Ok(ExitCode::SUCCESS);
    }
    let program = build()?;
    let rustc = rustc()?;
    println!("{:<24} {:>9} since it was recorded", "stream", "a request");
    let mut verdicts = Vec::new();
    for (name, requests) in streams(&program)? {
        let count = count(&program, &name, requests, &rustc)?;
        if options.record {
            fs::write(recorded_at(&name), serde_json::to_string_pretty(&count)? + "\n")?;
            println!("{name:<24} {:>9.1} recorded", count.a_request());
        } else {
            verdicts.push((judged(&name, &count)?, name));
        }
    }
    Ok(conclude(&verdicts, &rustc))
}

/// Compares a stream with what was recorded, and says what there is to say.
fn judged(name: &str, count: &Count) -> Result<Verdict> {
    let path = recorded_at(name);
    let text = fs::read_to_string(&path);
    let text = text.with_context(|| format!("{}: record it first", path.display()))?;
    let recorded: Count = serde_json::from_str(&text)?;
    let verdict = Verdict::of(&recorded, count);
    println!("{name:<24} {:>9.1} {verdict}", count.a_request());
    if let Verdict::Grown(_) = verdict {
        println!("{}", explained(&recorded, count));
    }
    Ok(verdict)
}

fn conclude(verdicts: &[(Verdict, String)], rustc: &str) -> ExitCode {
    let names = |wanted: fn(&Verdict) -> bool| {
        let chosen = verdicts.iter().filter(|(verdict, _)| wanted(verdict));
        chosen.map(|(_, name)| name.as_str()).collect::<Vec<_>>().join(", ")
    };
    let incomparable = names(|verdict| *verdict == Verdict::Incomparable);
    if !incomparable.is_empty() {
        println!("SKIPPED: {incomparable}: not recorded with {rustc}. {RECORD} where all was well");
    }
    let shrunk = names(|verdict| matches!(verdict, Verdict::Shrunk(_)));
    if !shrunk.is_empty() {
        println!("less than recorded: {shrunk}. So that it stays: {RECORD}");
    }
    let grown = names(|verdict| matches!(verdict, Verdict::Grown(_)));
    if grown.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("grown: {grown}. If it is meant: {RECORD}");
    ExitCode::FAILURE
}

impl Count {
    fn a_request(&self) -> f64 {
        self.instructions as f64 / self.requests as f64
    }
}

/// What a count is beside the recorded one.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Verdict {
    /// Recorded with another compiler, so that nothing follows.
    Incomparable,
    /// Within bounds: the change, as a share.
    Good(f64),
    Grown(f64),
    /// By as much as would be a failure the other way.
    Shrunk(f64),
}

impl Verdict {
    fn of(recorded: &Count, now: &Count) -> Self {
        if recorded.rustc != now.rustc {
            return Self::Incomparable;
        }
        let change = now.a_request() / recorded.a_request() - 1.0;
        match change {
            _ if change > GROWTH_MAX => Self::Grown(change),
            _ if change < -GROWTH_MAX => Self::Shrunk(change),
            _ => Self::Good(change),
        }
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Incomparable => write!(out, "not compared: recorded with another compiler"),
            Self::Good(change) | Self::Shrunk(change) => write!(out, "{:+.2} %", change * 100.0),
            Self::Grown(change) => {
                write!(out, "{:+.2} %, more than {:.0} %", change * 100.0, GROWTH_MAX * 100.0)
            }
        }
    }
}

/// Which functions grew most, in instructions a request.
fn explained(recorded: &Count, now: &Count) -> String {
    let before = |name: &str| recorded.functions.get(name).copied().unwrap_or_default();
    let a_request = |functions: u64, count: &Count| functions as f64 / count.requests as f64;
    let mut growth: Vec<(f64, &str)> = now
        .functions
        .iter()
        .map(|(name, &instructions)| {
            (a_request(instructions, now) - a_request(before(name), recorded), name.as_str())
        })
        .collect();
    growth.sort_by(|one, other| other.0.total_cmp(&one.0));
    let lines = growth.iter().take(NAMED_MAX).filter(|(grown, _)| *grown > 0.0);
    let lines: Vec<String> =
        lines.map(|(grown, name)| format!("    {grown:>+9.1} {name}")).collect();
    lines.join("\n")
}

fn recorded_at(name: &str) -> PathBuf {
    shell::root().join("xtask/instructions/recorded").join(format!("{name}.json"))
}

fn build() -> Result<PathBuf> {
    let mut cargo = shell::cargo();
    cargo.args(["build", "--profile", PROFILE, "-p", PROGRAM]);
    shell::run(&mut cargo)?;
    Ok(shell::target_directory().join(PROFILE).join(PROGRAM))
}

fn rustc() -> Result<String> {
    let output = Command::new("rustc").arg("--version").output().context("starting rustc")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The streams by name, and the requests of each.
fn streams(program: &Path) -> Result<Vec<(String, u64)>> {
    let output = Command::new(program).output().context("listing the streams")?;
    let text = String::from_utf8(output.stdout)?;
    let parsed = text.lines().map(|line| {
        let (name, requests) = line.split_once(' ').context("a name and a number")?;
        Ok((name.to_owned(), requests.parse()?))
    });
    parsed.collect()
}

fn count(program: &Path, name: &str, requests: u64, rustc: &str) -> Result<Count> {
    let directory = tempfile::tempdir()?;
    let profile = directory.path().join("profile");
    let mut command = Command::new("valgrind");
    // An environment of its own, because its length moves the stack.
    command.env_clear().env("PATH", "/usr/bin:/bin");
    command.args(["--tool=callgrind", "--quiet", "--dump-line=no"]);
    command.args(["--compress-strings=no", "--compress-pos=no"]);
    command.arg(format!("--toggle-collect={COUNTED}*"));
    command.arg(format!("--callgrind-out-file={}", profile.display()));
    let output = command.arg(program).arg(name).output().context("starting valgrind")?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name} ends with {}: {words}", output.status);
    let functions = callgrind::parse(&fs::read_to_string(&profile)?)?;
    let instructions: u64 = functions.values().sum();
    ensure!(instructions > 0, "callgrind has not seen {COUNTED}");
    let least = (instructions as f64 * RECORDED_SHARE_MIN) as u64;
    let functions = functions.into_iter().filter(|(_, count)| *count >= least).collect();
    Ok(Count { rustc: rustc.to_owned(), requests, instructions, functions })
}

#[cfg(test)]
mod tests {
    use super::{Count, Verdict, explained};

    fn count(rustc: &str, slow: u64) -> Count {
        let functions = [("fast".to_owned(), 900), ("slow".to_owned(), slow)].into();
        Count { rustc: rustc.to_owned(), requests: 10, instructions: 900 + slow, functions }
    }

    #[test]
    fn growth_beyond_the_bound_fails_and_is_explained() {
        let recorded = count("1", 100);
        assert_eq!(Verdict::of(&recorded, &count("1", 100)), Verdict::Good(0.0));
        assert!(matches!(Verdict::of(&recorded, &count("1", 129)), Verdict::Good(_)));
        assert!(matches!(Verdict::of(&recorded, &count("1", 10)), Verdict::Shrunk(_)));
        let grown = count("1", 131);
        assert!(matches!(Verdict::of(&recorded, &grown), Verdict::Grown(_)));
        assert_eq!(explained(&recorded, &grown), "         +3.1 slow");
    }

    #[test]
    fn another_compiler_makes_no_verdict() {
        assert_eq!(Verdict::of(&count("1", 100), &count("2", 900)), Verdict::Incomparable);
    }
}
