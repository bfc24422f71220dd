//! `sessionctl top`: what the cache does now, on one screen, from the control socket alone.
#![forbid(unsafe_code)]

mod draw;
pub(super) mod sample;
#[cfg(test)]
mod tests;

use std::io::{IsTerminal, Write};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};

use crate::control::ctl::client::Client;
use crate::control::ctl::top::sample::Sample;

/// Size of a frame that goes to no terminal.
const FRAME: (u16, u16) = (100, 40);

/// One frame as text: two looks at the daemon, `interval` apart.
pub(super) fn once(client: &mut Client, interval: Duration, out: &mut impl Write) -> Result<()> {
    let before = Sample::take(client)?;
    thread::sleep(interval);
    let now = Sample::take(client)?;
    let mut terminal = Terminal::new(TestBackend::new(FRAME.0, FRAME.1))?;
    terminal.draw(|frame| draw::screen(frame, &before, &now))?;
    write!(out, "{}", text(terminal.backend().buffer()))?;
    Ok(out.flush()?)
}

/// Frames on the terminal until `q`, Esc or Ctrl-C.
pub(super) fn run(client: &mut Client, interval: Duration) -> Result<()> {
    ensure!(
        std::io::stdout().is_terminal(),
        "standard output is no terminal; use --once for one frame as text"
    );
    let mut before = Sample::take(client)?;
    let mut terminal = ratatui::try_init().context("taking the terminal over")?;
    let outcome = (|| -> Result<()> {
        loop {
            if is_over(interval)? {
                return Ok(());
            }
            let now = Sample::take(client)?;
            terminal.draw(|frame| draw::screen(frame, &before, &now))?;
            before = now;
        }
    })();
    ratatui::restore();
    outcome
}

/// Waits for the next frame; whether the operator has seen enough.
fn is_over(interval: Duration) -> Result<bool> {
    let end = std::time::Instant::now() + interval;
    loop {
        let left = end.saturating_duration_since(std::time::Instant::now());
        if !event::poll(left)? {
            return Ok(false);
        }
        if let Event::Key(key) = event::read()? {
            let interrupt =
                key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
            if interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                return Ok(true);
            }
        }
    }
}

/// The characters of a frame, without blanks at the ends of lines and empty lines at its end.
fn text(buffer: &Buffer) -> String {
    let width = usize::from(buffer.area.width).max(1);
    let lines = buffer.content.chunks(width).map(|cells| {
        let line: String = cells.iter().map(|cell| cell.symbol()).collect();
        line.trim_end().to_owned() + "\n"
    });
    let text: String = lines.collect();
    text.trim_end().to_owned() + "\n"
}
