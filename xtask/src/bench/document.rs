//! The last run's tables in docs/benchmarks.md: between two marks, everything else being words of
//! people.
#![forbid(unsafe_code)]

use std::fs;

use anyhow::{Context, Result};

use crate::shell;

const PATH: &str = "docs/benchmarks.md";
const BEGIN: &str = "<!-- cargo xtask bench --document writes from here -->\n";
const END: &str = "<!-- to here -->\n";

/// Puts the tables in the place of those that are there.
pub(super) fn write(tables: &str) -> Result<()> {
    let path = shell::root().join(PATH);
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let new = replaced(&text, tables).with_context(|| format!("{PATH} has no {BEGIN}...{END}"))?;
    fs::write(&path, new)?;
    println!("the tables are in {PATH}");
    Ok(())
}

/// The text with other tables; none when a mark is missing.
fn replaced(text: &str, tables: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, behind) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}{}\n{END}{behind}", tables.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::{BEGIN, END, replaced};

    #[test]
    fn only_what_stands_between_the_marks_changes() {
        let text = |tables| format!("words\n{BEGIN}{tables}\n{END}more\n");
        assert_eq!(replaced(&text("old"), "new\n\n"), Some(text("new")));
        assert_eq!(replaced("words\n", "new"), None);
        assert_eq!(replaced(&format!("{BEGIN}old"), "new"), None);
    }
}
