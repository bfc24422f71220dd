//! `cargo xtask test --kernels`: the guard on Debian's kernels, each in a machine of its own.
//!
//! It owns which kernels those are and how they are fetched and started: qemu, in software, without
//! any network device, from an initial ramdisk that holds the guard's tests. Which instructions
//! the verifier walked is compared with what was recorded.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::ramdisk::Ramdisk;
use crate::{packages, shell};

/// Debian's releases, whose own kernels are 5.10, 6.1, 6.12 and a newer one.
const SUITES: [&str; 4] = ["bullseye", "bookworm", "trixie", "sid"];

/// What the machines are made of.
const PACKAGES: &[&str] =
    &["bpftool", "busybox-static", "iproute2", "qemu-system-x86", "wireguard-tools", "xz-utils"];

/// Debian's keys, by which the packages are trusted.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Test programs that run there, and which of their tests; all if none is named.
const PROGRAMS: [(&str, &str); 8] = [
    ("packet_load", ""),
    ("packet_evasion", ""),
    ("plane_table", ""),
    ("plane_diff", ""),
    ("guard_stands", "strangers_reach_nothing"),
    ("guard_stands", "a_killed_daemon"),
    ("guard_lists", "a_hundred_thousand"),
    ("guard_devices", ""),
];

/// Kernel modules that the tests need.
const MODULES: [&str; 3] = ["bridge", "veth", "tun"];

/// Those of devices whose tests skip themselves where a kernel has no such device.
const MODULES_OF_DEVICES: [&str; 7] =
    ["8021q", "bonding", "ipvlan", "macvlan", "vrf", "vxlan", "wireguard"];

/// Longest that one machine may take: an emulated one is slow, and a busy host slower.
const LIMIT: Duration = Duration::from_secs(3600);

/// Without cmpxchg16b, after which qemu 7.2 goes wrong where Linux 6.12 uses it first.
const CPU: &str = "max,-cx16";

/// How many times longer the tests wait there.
const PATIENCE: &str = "15";

/// How a test says that it cannot run there; it passes for the test program.
const SKIPPED: &str = "SKIPPED ";

/// How much more than recorded the verifier may walk, in percent.
const GROWTH_MAX: u64 = 20;

/// A kernel and the modules of it.
struct Kernel {
    version: String,
    image: PathBuf,
    modules: PathBuf,
}

/// Runs the guard's tests on every kernel, or on those whose version begins with `only`.
pub(crate) fn run(only: &str) -> Result<ExitCode> {
    packages::ensure(PACKAGES);
    let mut build = shell::cargo();
    build.args(["build", "--package", "session-tests", "--bin", "guard_holder"]);
    shell::run(build.args(PROGRAMS.iter().flat_map(|(name, _)| ["--test", name])))?;
    let mut report = String::new();
    let mut counts = BTreeMap::new();
    let mut all_well = true;
    for suite in SUITES {
        let kernel = fetch(suite).with_context(|| format!("the kernel of Debian {suite}"))?;
        if !kernel.version.starts_with(only) {
            continue;
        }
        let start = Instant::now();
        let output = boot(&kernel)?;
        let (is_well, summary) = read(&kernel.version, &output, &mut counts);
        if !is_well {
            println!("{output}");
        }
        all_well &= is_well;
        let line =
            format!("{}: {summary} ({:.0} s)", kernel.version, start.elapsed().as_secs_f64());
        println!("{line}");
        report.push_str(&line);
        report.push('\n');
        for skipped in output.lines().filter_map(|line| line.split_once(SKIPPED)) {
            report.push_str(&format!("  skipped: {}\n", skipped.1));
        }
    }
    ensure!(!report.is_empty(), "no kernel's version begins with {only}");
    println!("\n{report}");
    let grown = compare(&counts)?;
    grown.iter().for_each(|line| println!("{line}"));
    Ok(if all_well && grown.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Fetches a release's kernel by apt, in a state of its own: the machine's stays as it is.
fn fetch(suite: &str) -> Result<Kernel> {
    let directory = shell::target_directory().join("kernels").join(suite);
    let root = directory.join("root");
    if !root.exists() {
        for name in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(directory.join(name))?;
        }
        let line = format!("deb [signed-by={KEYRING}] http://deb.debian.org/debian {suite} main\n");
        fs::write(directory.join("sources.list"), line)?;
        shell::run(apt("apt-get", &directory).args(["-qq", "update"]))?;
        let image = depends(&directory, "linux-image-cloud-amd64")?;
        let image = image.iter().find(|name| name.starts_with("linux-image-"));
        let image = image.context("the metapackage names no kernel")?.clone();
        let parts = depends(&directory, &image)?
            .into_iter()
            .filter(|name| name.starts_with("linux-modules-") || name.starts_with("linux-binary-"));
        let wanted: Vec<String> = parts.chain([image]).collect();
        shell::run(
            apt("apt-get", &directory)
                .args(["-qq", "download"])
                .args(wanted)
                .current_dir(&directory),
        )?;
        let unpacked = directory.join("unpacked");
        for package in files(&directory, |name| name.ends_with(".deb"))? {
            shell::run(Command::new("dpkg-deb").arg("--extract").args([&package, &unpacked]))?;
        }
        fs::rename(unpacked, &root)?;
    }
    let modules = [root.join("lib/modules"), root.join("usr/lib/modules")];
    let modules = modules.iter().find(|path| path.exists()).context("no modules")?;
    let modules = files(modules, |_| true)?.pop().context("no modules")?;
    let version = modules.file_name().and_then(|name| name.to_str()).context("no version")?;
    let images = [root.join(format!("boot/vmlinuz-{version}")), modules.join("vmlinuz")];
    let image = images.into_iter().find(|path| path.exists()).context("no image")?;
    Ok(Kernel { version: version.to_owned(), image, modules })
}

fn apt(program: &str, directory: &Path) -> Command {
    let mut command = Command::new(program);
    for (option, value) in [
        ("Dir::Etc::sourcelist", "sources.list"),
        ("Dir::State::lists", "lists"),
        ("Dir::Cache", "cache"),
    ] {
        command.arg("-o").arg(format!("{option}={}", directory.join(value).display()));
    }
    command.args(["-o", "Dir::Etc::sourceparts=-", "-o", "APT::Sandbox::User=root"]);
    command.args(["-o", "Acquire::Languages=none"]);
    command
}

/// Names of the packages that a package depends on.
fn depends(directory: &Path, package: &str) -> Result<Vec<String>> {
    let mut show = apt("apt-cache", directory);
    let output = show.args(["show", "--no-all-versions", package]).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find_map(|line| line.strip_prefix("Depends: "));
    let line = line.with_context(|| format!("{package}: not in the archive"))?;
    Ok(line
        .split([',', '|'])
        .filter_map(|one| one.split_whitespace().next())
        .map(str::to_owned)
        .collect())
}

fn files(directory: &Path, is_wanted: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    let mut paths = Vec::new();
    for entry in entries {
        let entry = entry?;
        if is_wanted(&entry.file_name().to_string_lossy()) {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

/// Starts a machine with this kernel and returns what it wrote to its serial line.
fn boot(kernel: &Kernel) -> Result<String> {
    let scratch = tempfile::tempdir()?;
    let ramdisk = scratch.path().join("ramdisk");
    fs::write(&ramdisk, fill(kernel, scratch.path())?)?;
    let mut machine = Command::new("timeout");
    machine.args(["--kill-after=10", &LIMIT.as_secs().to_string(), "qemu-system-x86_64"]);
    machine.args(["-accel", "tcg", "-cpu", CPU, "-m", "2048", "-smp", "1", "-nodefaults"]);
    machine.args(["-no-reboot", "-nographic", "-serial", "stdio", "-net", "none"]);
    machine.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(&ramdisk);
    machine.args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off nokaslr"]);
    println!("starting {} in qemu", kernel.version);
    let output = machine.stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).replace('\r', ""))
}

/// The tests where they find what they need: at the same paths as here.
fn fill(kernel: &Kernel, scratch: &Path) -> Result<Vec<u8>> {
    let mut disk = Ramdisk::default();
    let binaries = shell::binary_directory();
    let mut init = INIT.to_owned();
    disk.file("/init", INIT_HEAD.as_bytes(), 0o755);
    disk.program(Path::new("/bin/busybox"), "/bin/busybox")?;
    for (program, place) in [("ip", "/bin/ip"), ("bpftool", "/bin/bpftool"), ("wg", "/bin/wg")] {
        let path = shell::find(program).with_context(|| format!("no {program}"))?;
        disk.program(&fs::canonicalize(path)?, place)?;
    }
    let mut modules = Modules { all: &kernel.modules, found: Vec::new() };
    for name in MODULES {
        ensure!(modules.add(name)?, "{} has no module {name}", kernel.version);
    }
    for name in MODULES_OF_DEVICES {
        modules.add(name)?;
    }
    for (name, bytes) in &modules.found {
        disk.file(&format!("/modules/{name}.ko"), bytes, 0o644);
        init.push_str(&format!("insmod /modules/{name}.ko\n"));
    }
    let mut programs: Vec<(&str, PathBuf)> = Vec::new();
    for (name, _) in PROGRAMS {
        programs.push((name, test_program(&binaries, name)?));
    }
    programs.push(("guard_holder", binaries.join("guard_holder")));
    for (name, path) in &programs {
        let stripped = scratch.join(name);
        let mut strip = Command::new("strip");
        let status = strip.args(["--strip-debug", "-o"]).arg(&stripped).arg(path).status()?;
        ensure!(status.success(), "{strip:?}: {status}");
        disk.program(&stripped, &path.to_string_lossy())?;
    }
    let root = shell::root();
    for object in files(&root.join("session-ebpf/object"), |name| name.ends_with(".o"))? {
        disk.file(&object.to_string_lossy(), &fs::read(&object)?, 0o644);
    }
    disk.directory(&root.join("tests").to_string_lossy());
    for (name, filter) in PROGRAMS {
        let path = test_program(&binaries, name)?;
        init.push_str(&format!(
            "echo '@@ {name}'\n{} {filter} --nocapture 2>&1; echo \"@@ status $?\"\n",
            path.display()
        ));
    }
    init.push_str("echo '@@ end'\npoweroff -f\n");
    let init = init
        .replace("@PATIENCE@", PATIENCE)
        .replace("@TESTS@", &root.join("tests").to_string_lossy());
    disk.file("/tests.sh", init.as_bytes(), 0o755);
    Ok(disk.finish())
}

/// Says where the tests are to begin, whatever they do to this shell's output.
const INIT_HEAD: &str =
    "#!/bin/busybox sh\n/bin/busybox --install -s /bin\nsh /tests.sh\npoweroff -f\n";

const INIT: &str = "\
export PATH=/bin RUST_BACKTRACE=0 RUST_TEST_THREADS=1 SESSION_TEST_PATIENCE=@PATIENCE@
mkdir -p /proc /sys /dev /run /tmp
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
cd @TESTS@
";

/// The newest build of a test program.
fn test_program(binaries: &Path, name: &str) -> Result<PathBuf> {
    let prefix = format!("{name}-");
    let candidates = files(&binaries.join("deps"), |file| {
        file.strip_prefix(&prefix).is_some_and(|hash| hash.bytes().all(|b| b.is_ascii_hexdigit()))
    })?;
    let built = |path: &PathBuf| fs::metadata(path).and_then(|facts| facts.modified()).ok();
    candidates.into_iter().max_by_key(built).with_context(|| format!("{name} is not built"))
}

/// Modules in the order of their dependence.
struct Modules<'a> {
    /// The directory of all modules.
    all: &'a Path,
    found: Vec<(String, Vec<u8>)>,
}

impl Modules<'_> {
    /// Adds a module after those that it depends on; whether there is such a one.
    fn add(&mut self, name: &str) -> Result<bool> {
        // Both stand for the other in names of modules.
        let name = name.replace('-', "_");
        if self.found.iter().any(|(found, _)| *found == name) {
            return Ok(true);
        }
        let Some(bytes) = self.read(&name)? else { return Ok(false) };
        for other in depends_on(&bytes) {
            ensure!(self.add(&other)?, "{name} depends on {other}, which is not there");
        }
        self.found.push((name, bytes));
        Ok(true)
    }

    /// A module's bytes, unpacked.
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let mut find = Command::new("find");
        let pattern = format!("{}.ko*", name.replace('_', "[-_]"));
        let output = find.arg(self.all).args(["-name", &pattern]).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let Some(path) = text.lines().next().map(PathBuf::from) else { return Ok(None) };
        if path.extension().is_some_and(|extension| extension == "xz") {
            let mut xz = Command::new("xz");
            return Ok(Some(xz.args(["--decompress", "--stdout"]).arg(path).output()?.stdout));
        }
        Ok(Some(fs::read(path)?))
    }
}

/// What a module says that it depends on: `depends=llc,stp` in its section `.modinfo`.
fn depends_on(module: &[u8]) -> Vec<String> {
    const WORD: &[u8] = b"\0depends=";
    let Some(at) = module.windows(WORD.len()).position(|window| window == WORD) else {
        return Vec::new();
    };
    let names = module[at + WORD.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(names).into_owned();
    names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// Whether all went well, and what to say of it; counts of verified instructions go to `counts`.
fn read(
    version: &str,
    output: &str,
    counts: &mut BTreeMap<(String, String), u64>,
) -> (bool, String) {
    let statuses = output.lines().filter_map(|line| line.strip_prefix("@@ status "));
    let statuses: Vec<&str> = statuses.collect();
    let passed: usize = number_of(output, "passed");
    let failed: usize = number_of(output, "failed");
    for line in output.lines() {
        // `guard: 4555 instructions, 60000 verified`, as packet_load prints it, behind its own name.
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [.., hook, _, "instructions,", count, "verified"] = words[..]
            && let Ok(count) = count.parse()
        {
            let series: Vec<&str> = version.split('.').take(2).collect();
            counts.insert((series.join("."), hook.trim_end_matches(':').to_owned()), count);
        }
    }
    let is_complete = output.contains("@@ end") && statuses.len() == PROGRAMS.len();
    let is_well = is_complete && failed == 0 && passed > 0 && statuses.iter().all(|s| *s == "0");
    let end = if is_complete { "" } else { ", and did not come to the end" };
    let skipped = output.lines().filter(|line| line.contains(SKIPPED)).count();
    (
        is_well,
        format!(
            "{} passed, {failed} failed, {skipped} skipped{end}",
            passed.saturating_sub(skipped)
        ),
    )
}

/// Sum of what the test programs report as `word`.
fn number_of(output: &str, word: &str) -> usize {
    let results = output.lines().filter_map(|line| line.split_once("test result: "));
    let parts = results.flat_map(|(_, result)| result.split([';', '.']));
    parts.filter_map(|part| part.trim().strip_suffix(word)?.trim().parse::<usize>().ok()).sum()
}

/// Where the counts are recorded: a kernel's series, the program, the count.
fn record() -> PathBuf {
    shell::root().join("session-ebpf/verified.txt")
}

/// Programs of which the verifier walks much more than recorded. What is not recorded yet is.
fn compare(counts: &BTreeMap<(String, String), u64>) -> Result<Vec<String>> {
    let text = fs::read_to_string(record()).unwrap_or_default();
    let mut recorded: BTreeMap<(String, String), u64> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if let [series, hook, count] = line.split_whitespace().collect::<Vec<_>>()[..] {
            recorded.insert((series.to_owned(), hook.to_owned()), count.parse()?);
        }
    }
    let mut grown = Vec::new();
    for (key, count) in counts {
        let before = *recorded.entry(key.clone()).or_insert(*count);
        if *count * 100 > before * (100 + GROWTH_MAX) {
            grown.push(format!(
                "{} on Linux {}: {count} instructions verified, {before} recorded in {}",
                key.1,
                key.0,
                record().display()
            ));
        }
    }
    let mut lines = String::from(HEADER);
    for ((series, hook), count) in &recorded {
        lines.push_str(&format!("{series} {hook} {count}\n"));
    }
    if lines != text {
        fs::write(record(), lines)?;
    }
    Ok(grown)
}

const HEADER: &str = "\
# Instructions that the verifier walks: kernel, program, count. `cargo xtask test --kernels` adds what
# is missing and fails when a count grows by more than a fifth; remove a line to record it anew.
";

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{PROGRAMS, depends_on, number_of, read};

    #[test]
    fn a_module_tells_what_it_depends_on() {
        assert_eq!(depends_on(b"\x7fELF\0license=GPL\0depends=llc,stp\0name=x\0"), ["llc", "stp"]);
        assert!(depends_on(b"\0depends=\0").is_empty() && depends_on(b"\x7fELF").is_empty());
    }

    #[test]
    fn a_machine_that_ends_early_or_fails_a_test_is_not_well() {
        let run = "test the_verifier ... guard: 10 instructions, 600 verified\n\
                   test result: ok. 3 passed; 0 failed; 0 ignored\n@@ status 0\n";
        let whole = format!("{}@@ end\n", run.repeat(PROGRAMS.len()));
        let mut counts = BTreeMap::new();
        let passed = format!("{} passed, 0 failed, 0 skipped", 3 * PROGRAMS.len());
        assert_eq!(read("6.1.0-9", &whole, &mut counts).1, passed);
        assert_eq!(counts[&("6.1".to_owned(), "guard".to_owned())], 600);
        assert!(read("6.1.0-9", &whole, &mut counts).0);
        for bad in [
            whole.replace("@@ end", ""),
            whole.replace("0 failed", "1 failed"),
            whole.replacen("@@ status 0", "@@ status 101", 1),
            format!("{run}@@ end\n"),
        ] {
            assert!(!read("6.1.0-9", &bad, &mut counts).0, "{bad}");
        }
        assert_eq!(number_of("test result: ok. 7 passed; 1 failed; 0 ignored", "failed"), 1);
    }
}
