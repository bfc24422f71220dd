//! Links of Markdown files: each leads to a file of the tree, and its anchor to a heading there.
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

use super::Finding;

/// Checks the links and pictures of one Markdown file.
pub(super) fn check(root: &Path, path: &Path, text: &str) -> Vec<Finding> {
    let here = root.join(path);
    let directory = here.parent().unwrap_or(root);
    let mut findings = Vec::new();
    for (number, target) in targets(text) {
        if target.contains("://") || target.starts_with("mailto:") {
            continue;
        }
        let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
        let file = if file.is_empty() { here.clone() } else { directory.join(file) };
        if !file.exists() {
            findings.push(Finding::new(number, format!("link to {target}, which does not exist")));
        } else if !anchor.is_empty() && !has_heading(&file, anchor) {
            findings.push(Finding::new(number, format!("link to {target}, which has no heading")));
        }
    }
    findings
}

/// Link targets outside code, with their lines.
fn targets(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut fenced = false;
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced {
            continue;
        }
        // Every second part of a line that is split at backticks is code.
        for part in line.split('`').step_by(2) {
            for piece in part.split("](").skip(1) {
                let target = piece.split(')').next().unwrap_or_default();
                found.push((index + 1, target.split(' ').next().unwrap_or_default()));
            }
        }
    }
    found
}

fn has_heading(file: &Path, anchor: &str) -> bool {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().filter(|line| line.starts_with('#')).any(|line| slug(line) == anchor)
}

/// The anchor that a renderer makes of a heading.
fn slug(heading: &str) -> String {
    let kept = heading.trim_start_matches('#').trim().chars().filter_map(|c| match c {
        ' ' => Some('-'),
        c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c.to_ascii_lowercase()),
        _ => None,
    });
    kept.collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::check;
    use crate::shell;

    fn count(text: &str) -> usize {
        check(shell::root(), Path::new("NEW.md"), text).len()
    }

    #[test]
    fn broken_links_are_found() {
        assert_eq!(count("see [x](docs/no-such-file.md) and [y](#no-such-heading)"), 1 + 1);
        assert_eq!(count("see [x](ARCHITECTURE.md#no-such-heading)"), 1);
    }

    #[test]
    fn good_links_code_and_addresses_elsewhere_are_not() {
        assert_eq!(count("[x](ARCHITECTURE.md) [y](https://example.org) `a[0](b)`"), 0);
        assert_eq!(count("[x](ARCHITECTURE.md#invariants)\n```\n[z](nowhere)\n```\n"), 0);
    }
}
