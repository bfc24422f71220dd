//! Memory: the host's, the control group's, the file system's, the pages'.
#![forbid(unsafe_code)]

use std::path::Path;

use rustix::fs::statvfs;

use crate::control::ctl::doctor::{Finding, Plan, mb, read};

pub(super) fn findings(plan: &Plan, runs: bool) -> Vec<Finding> {
    let mut findings = vec![available(plan, runs)];
    findings.extend(group(plan));
    findings.extend(file_system(plan, runs));
    findings.push(huge_pages(plan));
    findings
}

/// A figure of /proc/meminfo in bytes.
pub(super) fn meminfo(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

fn available(plan: &Plan, runs: bool) -> Finding {
    let check = "memory";
    let text = read("/proc/meminfo").unwrap_or_default();
    let Some(free) = meminfo(&text, "MemAvailable") else {
        return Finding::warn(check, "/proc/meminfo cannot be read", "mount -t proc proc /proc");
    };
    let (free_mb, limit) = (free >> 20, mb(plan.memory_limit));
    if runs || free >= plan.memory_limit {
        return Finding::ok(check, format!("{free_mb} MB are available, -m is {limit}"));
    }
    Finding::fail(
        check,
        format!("{free_mb} MB are available, -m is {limit}: the kernel would end the daemon"),
        format!("start sessiond with -m {}", free_mb * 3 / 4),
    )
}

/// The smallest limit of the control groups that this process is in.
fn group(plan: &Plan) -> Option<Finding> {
    let groups = read("/proc/self/cgroup")?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let own = Path::new("/sys/fs/cgroup").join(path.trim_start_matches('/'));
    let limits = own.ancestors().take_while(|path| path.starts_with("/sys/fs/cgroup"));
    let limit: u64 = limits.filter_map(|path| read(path.join("memory.max"))?.parse().ok()).min()?;
    if limit >= plan.memory_limit {
        return Some(Finding::ok("control group", format!("up to {} MB", limit >> 20)));
    }
    Some(Finding::fail(
        "control group",
        format!("up to {} MB, -m is {}", limit >> 20, mb(plan.memory_limit)),
        format!("MemoryMax={}M in the unit, or a smaller -m", mb(plan.memory_limit) + 64),
    ))
}

/// Room for the memory file.
fn file_system(plan: &Plan, runs: bool) -> Option<Finding> {
    let path = plan.memory_file.as_deref()?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    let check = "memory file";
    let shown = directory.display();
    let Ok(found) = statvfs(directory) else {
        let text = format!("{shown} is not there");
        return Some(Finding::fail(check, text, format!("mkdir -m 755 {shown}")));
    };
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    let taken = std::fs::metadata(path).map_or(0, |file| file.len());
    if runs || free.saturating_add(taken) >= plan.memory_limit {
        return Some(Finding::ok(check, format!("{} MB are free in {shown}", free >> 20)));
    }
    Some(Finding::fail(
        check,
        format!("{} MB are free in {shown}, -m is {}", free >> 20, mb(plan.memory_limit)),
        format!("mount -o remount,size={}m {shown}", mb(plan.memory_limit) * 5 / 4),
    ))
}

fn huge_pages(plan: &Plan) -> Finding {
    let check = "huge pages";
    let file = if plan.memory_file.is_some() { "shmem_enabled" } else { "enabled" };
    let path = Path::new("/sys/kernel/mm/transparent_hugepage").join(file);
    let Some(text) = read(&path) else {
        return Finding::ok(check, "this kernel has no transparent ones");
    };
    let chosen = text.split(['[', ']']).nth(1).unwrap_or("unknown").to_owned();
    let fix = format!("with -L: echo advise >{}", path.display())
        .replace("advise", if file == "enabled" { "madvise" } else { "advise" });
    match chosen.as_str() {
        "never" | "deny" => {
            Finding::warn(check, format!("{file}: {chosen}; -L has no effect"), fix)
        }
        _ => Finding::ok(check, format!("{file}: {chosen}")),
    }
}
