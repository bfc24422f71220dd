//! What has come of clients: told to whoever asks, and copied out. It owns no memory of its own.
#![forbid(unsafe_code)]

use crate::uring::lent::BUFFER_LEN;
use crate::uring::line::Received;
use crate::uring::ring::{Ring, User};
use std::io;

impl<U: User> Ring<U> {
    /// Whether bytes were received that fill a buffer, so that more may well be there.
    pub fn is_full(&self, idx: usize) -> bool {
        let line = self.lines.get(idx).and_then(Option::as_ref);
        line.is_some_and(|line| matches!(line.received, Received::Lent { end: BUFFER_LEN, .. }))
    }

    /// Copies received bytes; how many, 0 at the end.
    ///
    /// # Errors
    /// Why the socket failed.
    pub fn copy(&mut self, idx: usize, space: &mut [u8]) -> io::Result<usize> {
        let Some(line) = self.lines.get_mut(idx).and_then(Option::as_mut) else { return Ok(0) };
        let (len, is_over) = match &mut line.received {
            Received::Idle | Received::Armed | Received::End => return Ok(0),
            Received::Failed(error) => return Err((*error).into()),
            Received::Lent { id, start, end } => {
                let len = copy(self.lent.bytes(*id).get(*start..*end), space);
                *start += len;
                let is_over = start == end;
                if is_over {
                    self.lent.offer(*id);
                }
                (len, is_over)
            }
            Received::Aside(bytes, start) => {
                let len = copy(bytes.get(*start..), space);
                *start += len;
                (len, *start == bytes.len())
            }
        };
        if is_over {
            line.received = Received::Idle;
        }
        Ok(len)
    }

    /// What has come in this turn and was not copied yet.
    pub fn heard(&self) -> impl Iterator<Item = &[u8]> {
        let lines = self.heard.iter().filter_map(|idx| self.lines.get(*idx)?.as_ref());
        lines.filter_map(|line| match &line.received {
            Received::Lent { id, start, end } => self.lent.bytes(*id).get(*start..*end),
            _ => None,
        })
    }
}

fn copy(from: Option<&[u8]>, space: &mut [u8]) -> usize {
    let from = from.unwrap_or_default();
    let len = from.len().min(space.len());
    space[..len].copy_from_slice(&from[..len]);
    len
}
