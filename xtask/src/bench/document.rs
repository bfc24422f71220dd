//! The last run's tables in docs/benchmarks.md: between two marks, everything else being words of
//! people.
#![forbid(unsafe_code)]

use std::fs;

use anyhow::{Context, Result};

use crate::shell;

const PATH: &str = "docs/benchmarks.md";
const END: &str = "<!-- to here -->\n";

/// The mark before the tables of `cargo xtask bench` and what follows in its command line.
fn begin(command: &str) -> String {
    format!("<!-- cargo xtask bench{command} --document writes from here -->\n")
}

/// Writes a drawing beside the document.
pub(super) fn write_plot(name: &str, drawing: &str) -> Result<()> {
    let path = shell::root().join("docs").join(name);
    fs::write(&path, drawing).with_context(|| path.display().to_string())
}

/// Puts the tables of a command in the place of those that are there: of `cargo xtask bench` and
/// what follows in its command line.
pub(super) fn write(command: &str, tables: &str) -> Result<()> {
    let path = shell::root().join(PATH);
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let begin = begin(command);
    let new = replaced(&text, &begin, tables)
        .with_context(|| format!("{PATH} has no {begin}...{END}"))?;
    fs::write(&path, new)?;
    println!("the tables are in {PATH}");
    Ok(())
}

/// The text with other tables; none when a mark is missing.
fn replaced(text: &str, begin: &str, tables: &str) -> Option<String> {
    let (before, rest) = text.split_once(begin)?;
    let (_, behind) = rest.split_once(END)?;
    Some(format!("{before}{begin}{}\n{END}{behind}", tables.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::{END, begin, replaced};

    #[test]
    fn only_what_stands_between_the_marks_changes() {
        let other = format!("{}mine\n{END}", begin(" other"));
        let text = |tables| format!("words\n{other}{}{tables}\n{END}more\n", begin(""));
        assert_eq!(replaced(&text("old"), &begin(""), "new\n\n"), Some(text("new")));
        assert_eq!(replaced("words\n", &begin(""), "new"), None);
        assert_eq!(replaced(&format!("{}old", begin("")), &begin(""), "new"), None);
    }
}
