//! The client's end of the control socket: a line out, lines in.
#![forbid(unsafe_code)]

use std::io::{BufRead, BufReader, BufWriter, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::CONTROL_DIR;
use crate::control::protocol::Progress;

/// Longest wait for an answer. A replaced list of a million entries takes seconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);

/// A connection to a daemon.
pub(super) struct Client {
    reader: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the daemon at `path`.
    ///
    /// # Errors
    /// Nobody answers there, or we may not ask; the text says what to do.
    pub(super) fn connect(path: &Path) -> Result<Self> {
        let stream = match UnixStream::connect(path) {
            Ok(stream) => stream,
            Err(error) => return Err(no_daemon(path, &error)),
        };
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    /// Sends lines and reads the first line of the answer.
    ///
    /// # Errors
    /// The daemon's refusal, or a broken connection.
    pub(super) fn ask<L: Serialize>(
        &mut self,
        lines: impl IntoIterator<Item = L>,
    ) -> Result<Value> {
        self.ask_watched(lines, |_| {})
    }

    /// The same of a request that has the daemon tell how far it is.
    ///
    /// # Errors
    /// As for [`Client::ask`].
    pub(super) fn ask_watched<L: Serialize>(
        &mut self,
        lines: impl IntoIterator<Item = L>,
        mut show: impl FnMut(Progress),
    ) -> Result<Value> {
        let sent = (|| -> std::io::Result<()> {
            let mut writer = BufWriter::new(self.reader.get_ref());
            for line in lines {
                serde_json::to_writer(&mut writer, &line)?;
                writer.write_all(b"\n")?;
            }
            writer.flush()
        })();
        let answer = match (self.answer(&mut show), sent) {
            // A refusal may come before everything was sent.
            (Ok(Some(answer)), _) => answer,
            (_, Err(error)) => return Err(error).context("asking the daemon"),
            (Err(error), _) => return Err(error),
            (Ok(None), _) => bail!(
                "the daemon closed the connection unanswered: too many are open, \
                 or it is ending; try again"
            ),
        };
        if answer["ok"] == true {
            return Ok(answer);
        }
        bail!("{}", answer["error"].as_str().unwrap_or("the daemon refused without a reason"))
    }

    /// The first line that is not of the way to it.
    fn answer(&mut self, show: &mut impl FnMut(Progress)) -> Result<Option<Value>> {
        loop {
            let line = self.line()?;
            let progress = line.as_ref().and_then(|line| line.get("progress"));
            match progress.map(Progress::deserialize).transpose() {
                Ok(Some(progress)) => show(progress),
                Ok(None) => return Ok(line),
                Err(error) => return Err(error).context("the answer cannot be read"),
            }
        }
    }

    /// The next line of a long answer; None at the end of the connection.
    ///
    /// # Errors
    /// A broken connection or a line that is no JSON.
    pub(super) fn line(&mut self) -> Result<Option<Value>> {
        let mut line = String::new();
        let len = self.reader.read_line(&mut line).context("reading the answer")?;
        if len == 0 {
            return Ok(None);
        }
        Ok(Some(serde_json::from_str(&line).context("the answer cannot be read")?))
    }

    /// Waits for lines without a limit.
    ///
    /// # Errors
    /// Those of the socket.
    pub(super) fn wait_for_ever(&mut self) -> Result<()> {
        Ok(self.reader.get_ref().set_read_timeout(None)?)
    }
}

fn no_daemon(path: &Path, error: &std::io::Error) -> anyhow::Error {
    let shown = path.display();
    match error.kind() {
        ErrorKind::PermissionDenied => {
            anyhow::anyhow!("{shown}: only root may steer the daemon; run sessionctl as root")
        }
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
            let others = others(path);
            let hint = if others.is_empty() {
                "start it, such as with: sessiond -u nobody --allow 198.18.0.0/24".to_owned()
            } else {
                format!("name another with --control: {}", others.join(", "))
            };
            anyhow::anyhow!("{shown}: no daemon answers there; {hint}")
        }
        _ => anyhow::anyhow!("{shown}: {error}"),
    }
}

/// Control sockets in the usual place where somebody answers.
fn others(path: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(CONTROL_DIR).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|found: &PathBuf| found.as_path() != path)
        .filter(|found| found.extension().is_some_and(|extension| extension == "sock"))
        .filter(|found| UnixStream::connect(found).is_ok())
        .map(|found| found.display().to_string())
        .collect()
}
