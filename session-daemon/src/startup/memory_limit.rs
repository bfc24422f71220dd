//! Whether the memory that `-m` asks for may be had: the limits of the control groups that this
//! process is in. A daemon that is killed for it later would lose more than a start.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};

use crate::config::{Config, EXIT_OS, Refusal};

/// What both processes have beside items: code, stacks, the guard's maps, buffers of connections.
const BESIDE: u64 = 16 << 20;

/// The smallest limit that holds for this process, and whose it is.
type Limit = (u64, PathBuf);

/// Refuses what cannot be: a limit below what the store alone will take.
///
/// # Errors
/// With the group, its limit and what is needed.
pub(super) fn check(config: &Config) -> Result<(), Refusal> {
    let read = |path: &Path| fs::read_to_string(path).ok();
    let Some((limit, group)) = smallest(read) else { return Ok(()) };
    let need = config.memory_limit.saturating_add(BESIDE);
    if limit < need {
        return Err(Refusal::new(
            EXIT_OS,
            format!(
                "-m: the control group {} may have {} MB, and {} MB are needed; raise its limit \
                 or lower -m",
                group.display(),
                limit >> 20,
                need >> 20
            ),
        ));
    }
    if limit < need.saturating_add(config.buffer_limit) {
        log::warn!(
            "the control group {} may have {} MB: with --buffer-limit in use that can be too little",
            group.display(),
            limit >> 20
        );
    }
    Ok(())
}

/// Bytes that the store may have at most, if its control groups have a limit.
pub(super) fn most() -> Option<usize> {
    let (limit, _) = smallest(|path: &Path| fs::read_to_string(path).ok())?;
    usize::try_from(limit.saturating_sub(BESIDE)).ok()
}

fn smallest(read: impl Fn(&Path) -> Option<String>) -> Option<Limit> {
    let groups = read(Path::new("/proc/self/cgroup"))?;
    let mounts = read(Path::new("/proc/self/mountinfo"))?;
    let directories = mounts.lines().filter_map(|line| directory(line, &groups));
    directories.filter_map(|(top, own, file)| smallest_above(&top, own, file, &read)).min()
}

/// For a mount of control groups that account memory: its top, the directory of our own group, and
/// the file of its limit.
fn directory(mount: &str, groups: &str) -> Option<(PathBuf, PathBuf, &'static str)> {
    let (place, kind) = mount.split_once(" - ")?;
    let mut place = place.split(' ').skip(3);
    let (root, top) = (place.next()?, place.next()?);
    let mut kind = kind.split(' ');
    let (kind, options) = (kind.next()?, kind.nth(1)?);
    let (file, own) = match kind {
        "cgroup2" => ("memory.max", group(groups, "")?),
        "cgroup" if options.split(',').any(|word| word == "memory") => {
            ("memory.limit_in_bytes", group(groups, "memory")?)
        }
        _ => return None,
    };
    // A container's mount begins at its own group.
    let below = Path::new(own).strip_prefix(root).unwrap_or(Path::new(""));
    let own = Path::new(top).components().chain(below.components()).collect();
    Some((PathBuf::from(top), own, file))
}

/// Our group by a controller, the empty word for the second version: `N:CONTROLLERS:PATH`.
fn group<'t>(groups: &'t str, controller: &str) -> Option<&'t str> {
    groups.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        controllers.split(',').any(|word| word == controller).then_some(path)
    })
}

/// The smallest limit of a group and of those that it is in.
fn smallest_above(
    top: &Path,
    mut own: PathBuf,
    file: &str,
    read: &impl Fn(&Path) -> Option<String>,
) -> Option<Limit> {
    let mut found: Option<Limit> = None;
    loop {
        // `max` of the second version is no number, and so no limit.
        let limit = read(&own.join(file)).and_then(|text| text.trim().parse().ok());
        found = found.into_iter().chain(limit.map(|limit| (limit, own.clone()))).min();
        if own == top || !own.pop() {
            return found;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n";
    const FIRST: &str = "31 23 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";

    fn limit(mounts: &str, groups: &str, files: &[(&str, &str)]) -> Option<(u64, String)> {
        let read = |path: &Path| match path.to_str().unwrap() {
            "/proc/self/cgroup" => Some(groups.to_owned()),
            "/proc/self/mountinfo" => Some(mounts.to_owned()),
            path => files.iter().find(|(name, _)| *name == path).map(|(_, text)| (*text).into()),
        };
        smallest(read).map(|(limit, group)| (limit, group.display().to_string()))
    }

    #[test]
    fn the_smallest_limit_on_the_way_up_counts() {
        let files = [
            ("/sys/fs/cgroup/a/memory.max", "1000\n"),
            ("/sys/fs/cgroup/a/b/memory.max", "max\n"),
            ("/sys/fs/cgroup/a/b/c/memory.max", "2000\n"),
        ];
        let found = limit(SECOND, "0::/a/b/c\n", &files);
        assert_eq!(found, Some((1000, "/sys/fs/cgroup/a".to_owned())));
        assert_eq!(limit(SECOND, "0::/\n", &files), None);
    }

    #[test]
    fn the_first_version_and_a_container_are_read_too() {
        let groups = "5:cpu,memory:/x\n4:pids:/y\n0::/z\n";
        let file = ("/sys/fs/cgroup/memory/x/memory.limit_in_bytes", "4096\n");
        let found = limit(FIRST, groups, &[file]);
        assert_eq!(found, Some((4096, "/sys/fs/cgroup/memory/x".to_owned())));
        let mount = "30 23 0:26 /pod/one /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n";
        let file = ("/sys/fs/cgroup/memory.max", "77\n");
        let found = limit(mount, "0::/pod/one\n", &[file]);
        assert_eq!(found, Some((77, "/sys/fs/cgroup".to_owned())));
        assert_eq!(limit("nonsense\n", "0::/\n", &[]), None);
    }
}
