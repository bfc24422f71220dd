//! The README's second command: sets up, builds, runs every test program, and adds up.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use session_tests::{binaries, leftovers, skip};

use crate::kernels;
use crate::packages;
use crate::shell;
use crate::tally::Tally;

/// Names the eBPF object that the daemon is built with, and that the guard's tests load, instead
/// of the kept one.
const OBJECT_VARIABLE: &str = "SESSION_GUARD_OBJECT";

/// Longest that one test program may take, in seconds; with `--all` it is four times that.
const PROGRAM_LIMIT_S: u64 = 600;

/// Test programs about the guard, by the first word of their names.
const GUARD_PROGRAMS: &[&str] = &["packet_", "guard_", "e2e_"];

/// Names the engine (`--io`) that daemons under test are started with.
const IO_VARIABLE: &str = "SESSION_TEST_IO";

/// Test programs that run by way of epoll too, as where io_uring cannot be had. The others do not
/// depend on what moves the bytes, or ask for both engines themselves.
const EPOLL_PROGRAMS: &[&str] = &[
    "script_memcached",
    "wire_admin",
    "wire_auth",
    "wire_limits",
    "wire_load",
    "wire_smuggling",
    "wire_timeouts",
    "wire_tls",
    "wire_unix",
    "wire_workers",
];

/// Options of `cargo xtask test`.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Options {
    /// Run only tests whose name, or whose program's name, contains this
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Run the long tests as well
    #[arg(long)]
    all: bool,
    /// Run the guard's tests alone, on this eBPF object instead of the kept one
    #[arg(long, value_name = "PATH")]
    object: Option<PathBuf>,
    /// Run the guard's on Debian's kernels instead, in emulated machines, or on those of a version
    #[arg(long, value_name = "VERSION", num_args = 0..=1, default_missing_value = "")]
    kernels: Option<String>,
}

/// One test executable that cargo built.
#[derive(Debug)]
struct Program {
    name: String,
    package_directory: PathBuf,
    executable: PathBuf,
    arguments: &'static [&'static str],
    /// The engine that its daemons are to have; none for their own choice.
    engine: Option<&'static str>,
}

/// Runs everything and prints the closing line last.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if let Some(version) = &options.kernels {
        return kernels::run(version);
    }
    let total = total(options);
    println!("{total}");
    Ok(if total.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs everything; what keeps the tests from running counts as one failure.
pub(crate) fn total(options: &Options) -> Tally {
    packages::ensure(&[packages::FOR_TESTS, packages::FOR_PHP].concat());
    packages::ensure_clients();
    if shell::is_root() {
        leftovers::reap();
    } else {
        println!("without root every test that needs network namespaces is skipped");
    }
    run_all(options).unwrap_or_else(|error| {
        println!("{error:#}");
        Tally { failed: 1, ..Tally::default() }
    })
}

fn run_all(options: &Options) -> Result<Tally> {
    let directory = build_daemon(options)?;
    let programs = build_tests(options)?;
    ensure!(!programs.is_empty(), "no test program to run");
    let scratch = tempfile::tempdir()?;
    let skip_file = scratch.path().join("skips");
    let count = programs.len();
    let mut total = Tally::default();
    let mut trouble = Vec::new();
    for (index, program) in programs.iter().enumerate() {
        print!("[{:>2}/{count}] {:<36}", index + 1, program.name);
        std::io::stdout().flush()?;
        fs::write(&skip_file, "")?;
        let start = Instant::now();
        let mut command = program.command(options, &directory, &skip_file);
        let limit = Duration::from_secs(PROGRAM_LIMIT_S * if options.all { 4 } else { 1 });
        let (output, ended_well) = watch(&mut command, limit)?;
        let skips = fs::read_to_string(&skip_file)?;
        let tally = Tally::of_program(&output, ended_well, &skips);
        println!("{tally} ({:.1} s)", start.elapsed().as_secs_f64());
        skips.lines().for_each(|line| println!("        skipped {line}"));
        if tally.failed > 0 {
            println!("{output}");
            trouble.push(&program.name);
        }
        total += tally;
    }
    if total == Tally::default() {
        println!("no test has such a name");
        total.failed = 1;
    }
    for name in trouble {
        println!("failed: {name}");
    }
    Ok(total)
}

impl Options {
    /// The guard's tests alone, on this object.
    pub(crate) fn on_object(object: PathBuf) -> Self {
        Self { object: Some(object), ..Self::default() }
    }

    fn choose_object(&self, command: &mut Command) {
        if let Some(object) = &self.object {
            command.env(OBJECT_VARIABLE, shell::root().join(object));
        }
    }
}

impl Program {
    fn command(&self, options: &Options, directory: &Path, skip_file: &Path) -> Command {
        let mut command = Command::new(&self.executable);
        command.args(self.arguments).current_dir(&self.package_directory);
        // What `cargo test` would tell the program about its package.
        command.env("CARGO_MANIFEST_DIR", &self.package_directory);
        command.env(binaries::DIRECTORY_VARIABLE, directory);
        command.env(skip::FILE_VARIABLE, skip_file);
        if options.all {
            command.env(skip::ALL_VARIABLE, "1");
            command.args(self.arguments.is_empty().then_some("--include-ignored"));
        }
        options.choose_object(&mut command);
        if let Some(engine) = self.engine {
            command.env(IO_VARIABLE, engine);
        }
        if let Some(filter) = &options.filter
            && !self.name.contains(filter)
        {
            command.arg(filter);
        }
        command
    }

    /// Unit tests first, then what needs no namespace, then the rest.
    fn tier(&self) -> u8 {
        let name = self.target();
        match name.split('_').next().unwrap_or_default() {
            "packet" | "script" | "wire" => 1,
            "guard" | "e2e" | "clients" | "process" | "sessionctl" => 2,
            _ => 0,
        }
    }

    /// Its name without its package's.
    fn target(&self) -> &str {
        self.name.split(' ').nth(1).unwrap_or_default()
    }

    /// The same program by way of epoll, if that is worth another run.
    fn by_epoll(&self) -> Option<Self> {
        EPOLL_PROGRAMS.contains(&self.target()).then(|| Self {
            name: format!("{} (epoll)", self.name),
            package_directory: self.package_directory.clone(),
            executable: self.executable.clone(),
            arguments: self.arguments,
            engine: Some("tokio"),
        })
    }

    fn is_about_the_guard(&self) -> bool {
        let name = self.target();
        GUARD_PROGRAMS.iter().any(|prefix| name.starts_with(prefix))
    }
}

/// Builds `sessiond` and `sessionctl` and returns the directory that they are in.
fn build_daemon(options: &Options) -> Result<PathBuf> {
    let mut command = shell::cargo();
    options.choose_object(&mut command);
    shell::run(command.args(["build", "--package", "session-daemon", "--bins"]))?;
    Ok(shell::binary_directory())
}

/// Builds every test program of the workspace.
fn build_tests(options: &Options) -> Result<Vec<Program>> {
    let mut command = shell::cargo();
    options.choose_object(&mut command);
    command.args(["test", "--workspace", "--no-run", "--message-format=json-render-diagnostics"]);
    println!("+ {}", shell::line(&command));
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut messages = String::new();
    child.stdout.take().context("the pipe that was asked for")?.read_to_string(&mut messages)?;
    ensure!(child.wait()?.success(), "the tests do not build");
    let mut programs: Vec<Program> =
        messages.lines().filter_map(|line| program(&serde_json::from_str(line).ok()?)).collect();
    if options.object.is_some() {
        programs.retain(Program::is_about_the_guard);
    }
    let again: Vec<_> = programs.iter().filter_map(Program::by_epoll).collect();
    programs.extend(again);
    programs.sort_by_key(|program| (program.tier(), program.name.clone()));
    if options.object.is_none() && options.filter.is_none() {
        programs.push(Program {
            name: "documentation".into(),
            package_directory: shell::root().to_owned(),
            executable: shell::cargo().get_program().into(),
            arguments: &["test", "--quiet", "--workspace", "--doc"],
            engine: None,
        });
    }
    Ok(programs)
}

/// The test program that one of cargo's messages announces, if it does.
fn program(message: &Value) -> Option<Program> {
    (message["profile"]["test"] == true).then_some(())?;
    let directory = Path::new(message["manifest_path"].as_str()?).parent()?;
    let package = directory.file_name()?.to_str()?;
    Some(Program {
        name: format!("{package} {}", message["target"]["name"].as_str()?),
        package_directory: directory.to_owned(),
        executable: message["executable"].as_str()?.into(),
        arguments: &[],
        engine: None,
    })
}

/// Runs a test program to its end or to its limit. Lines about skips are shown as they come.
fn watch(command: &mut Command, limit: Duration) -> Result<(String, bool)> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("starting {command:?}"))?;
    let lines = lines(&mut child)?;
    let end = Instant::now() + limit;
    let mut output = String::new();
    let status = loop {
        collect(&lines, &mut output);
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > end {
            child.kill()?;
            output.push_str("killed: it took too long\n");
        }
    };
    // A process that the program left behind may hold the pipe open: what comes late is dropped.
    while collect(&lines, &mut output) {}
    if !status.success() {
        output.push_str(&format!("{status}\n"));
        leftovers::reap();
    }
    Ok((output, status.success()))
}

/// Takes the lines that are there; waits a little for the first. Whether more may come.
fn collect(lines: &Receiver<String>, output: &mut String) -> bool {
    match lines.recv_timeout(Duration::from_millis(200)) {
        Ok(line) => {
            output.push_str(&line);
            output.push('\n');
            true
        }
        Err(RecvTimeoutError::Timeout) => false,
        Err(RecvTimeoutError::Disconnected) => {
            // It closed its output; what remains is to see it end.
            thread::sleep(Duration::from_millis(20));
            false
        }
    }
}

fn lines(child: &mut Child) -> Result<Receiver<String>> {
    let (sender, receiver) = channel();
    let stdout = child.stdout.take().context("the pipe that was asked for")?;
    let stderr = child.stderr.take().context("the pipe that was asked for")?;
    let pipes: [Box<dyn Read + Send>; 2] = [Box::new(stdout), Box::new(stderr)];
    for pipe in pipes {
        let sender = sender.clone();
        thread::spawn(move || {
            for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
                let _ = sender.send(String::from_utf8_lossy(&line).into_owned());
            }
        });
    }
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use super::watch;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_program_that_ends_badly_or_too_late_did_not_end_well() {
        let limit = Duration::from_secs(30);
        assert_eq!(watch(&mut shell("echo a; echo b"), limit).unwrap(), ("a\nb\n".into(), true));
        let (output, ended_well) = watch(&mut shell("echo a >&2; exit 3"), limit).unwrap();
        assert!(output.starts_with("a\n") && !ended_well, "{output}");
        let (output, ended_well) =
            watch(&mut shell("exec sleep 60"), Duration::from_millis(300)).unwrap();
        assert!(output.contains("too long") && !ended_well, "{output}");
    }
}
