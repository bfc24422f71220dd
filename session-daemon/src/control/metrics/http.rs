//! As much of HTTP/1.1 as a scraper needs: GET and HEAD of one page, one request a connection.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

/// Longest head of a request.
const HEAD_LEN_MAX: usize = 8 << 10;
/// Connections at one time; more are closed unanswered.
const CONNECTIONS_MAX: usize = 16;
/// Longest wait for a whole head, and for the answer to be taken.
const TURN_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after a failed accept: descriptors come back when connections end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Page { body: bool },
    Other(&'static str),
}

/// Accepts and answers for ever; needs a `LocalSet`. `page` makes the page anew, and None while
/// there is nothing to be told.
pub(crate) async fn serve<S, P>(accept: impl AsyncFn() -> io::Result<S>, page: P) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
    P: Fn() -> Option<String> + 'static,
{
    let page = Rc::new(page);
    let open = Rc::new(Cell::new(0_usize));
    loop {
        let stream = match accept().await {
            Ok(stream) => stream,
            Err(error) => {
                log::debug!("metrics: accept: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if open.get() >= CONNECTIONS_MAX {
            continue;
        }
        open.set(open.get() + 1);
        let (page, open) = (Rc::clone(&page), Rc::clone(&open));
        tokio::task::spawn_local(async move {
            // A scraper that is too slow or breaks off is its own affair.
            let _ = timeout(2 * TURN_TIMEOUT, answer(stream, &*page)).await;
            open.set(open.get() - 1);
        });
    }
}

async fn answer<S>(mut stream: S, page: &dyn Fn() -> Option<String>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let head = match timeout(TURN_TIMEOUT, head(&mut stream)).await {
        Ok(head) => head?,
        Err(_) => None,
    };
    let asked = head.map_or(Asked::Other("400 Bad Request"), |head| read(&head));
    let (status, page, with_body) = match asked {
        Asked::Page { body } => match page() {
            Some(page) => ("200 OK", page, body),
            None => ("503 Service Unavailable", "the server is stopping\n".to_owned(), body),
        },
        Asked::Other(status) => (status, "the figures are at /metrics\n".to_owned(), true),
    };
    let kind = match asked {
        Asked::Page { .. } if status.starts_with("200") => {
            "application/openmetrics-text; version=1.0.0; charset=utf-8"
        }
        _ => "text/plain; charset=utf-8",
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        page.len()
    );
    stream.write_all(head.as_bytes()).await?;
    if with_body {
        stream.write_all(page.as_bytes()).await?;
    }
    stream.shutdown().await
}

/// The bytes up to the empty line; None if there is no such line within the bound.
async fn head(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    let mut part = [0; 1024];
    while bytes.len() <= HEAD_LEN_MAX {
        let len = stream.read(&mut part).await?;
        if len == 0 {
            return Ok(None);
        }
        bytes.extend_from_slice(&part[..len]);
        if bytes.windows(4).any(|window| window == b"\r\n\r\n") {
            return Ok(Some(bytes));
        }
    }
    Ok(None)
}

fn read(head: &[u8]) -> Asked {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    let (verb, target, version) = (words.next(), words.next(), words.next());
    if !version.is_some_and(|version| version.starts_with(b"HTTP/1.")) || words.next().is_some() {
        return Asked::Other("400 Bad Request");
    }
    let path = target.unwrap_or_default().split(|byte| *byte == b'?').next().unwrap_or_default();
    match (verb, path) {
        (Some(b"GET"), b"/metrics") => Asked::Page { body: true },
        (Some(b"HEAD"), b"/metrics") => Asked::Page { body: false },
        (Some(b"GET" | b"HEAD"), _) => Asked::Other("404 Not Found"),
        _ => Asked::Other("405 Method Not Allowed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_by_their_first_line() {
        for (line, asked) in [
            ("GET /metrics HTTP/1.1", Asked::Page { body: true }),
            ("GET /metrics?x=1 HTTP/1.0", Asked::Page { body: true }),
            ("HEAD /metrics HTTP/1.1", Asked::Page { body: false }),
            ("GET / HTTP/1.1", Asked::Other("404 Not Found")),
            ("POST /metrics HTTP/1.1", Asked::Other("405 Method Not Allowed")),
            ("GET /metrics", Asked::Other("400 Bad Request")),
            ("GET /metrics HTTP/1.1 more", Asked::Other("400 Bad Request")),
            ("get key", Asked::Other("400 Bad Request")),
            ("", Asked::Other("400 Bad Request")),
        ] {
            assert_eq!(read(format!("{line}\r\nHost: x\r\n\r\n").as_bytes()), asked, "{line}");
        }
    }
}
