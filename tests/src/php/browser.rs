//! Somebody at a browser: keeps a cookie, asks for pages, says what came.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// How long a page may take: longer than a session lock that somebody holds to its end.
const PAGE_TIMEOUT: Duration = Duration::from_secs(40);

/// A page as the shop makes it.
#[derive(Clone, Debug, Deserialize)]
pub struct Page {
    /// The web server that made it.
    pub web: String,
    /// Who is logged in.
    pub user: Option<String>,
    /// How many pages the session has seen, this one included.
    pub visits: u64,
    /// What PHP complained of.
    pub errors: Vec<String>,
}

/// A browser with one cookie. Its clones are windows of the same browser.
#[derive(Clone, Debug, Default)]
pub struct Browser {
    cookie: Option<String>,
    settings: Vec<(String, String)>,
}

impl Browser {
    /// A browser whose pages are made with these settings of php.ini, one a line:
    /// `session.save_handler = memcached`.
    #[must_use]
    pub fn with(settings: &str) -> Self {
        let settings = settings
            .lines()
            .filter_map(|line| line.split_once(" = "))
            .map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()))
            .collect();
        Self { cookie: None, settings }
    }

    /// The session's id, once there is one.
    #[must_use]
    pub fn session(&self) -> Option<&str> {
        self.cookie.as_deref()
    }

    /// Logs in. Call it inside the namespace of the browser's host.
    ///
    /// # Errors
    /// As [`Browser::get`].
    pub fn log_in(&mut self, server: Ipv4Addr, user: &str) -> Result<Page> {
        self.get(server, &format!("login={user}"))
    }

    /// Asks for the page. Call it inside the namespace of the browser's host.
    ///
    /// # Errors
    /// When there is no answer, or none of the page's. A page with complaints is no error.
    pub fn get(&mut self, server: Ipv4Addr, query: &str) -> Result<Page> {
        let mut path = format!("/?{query}");
        for (name, value) in &self.settings {
            path.push_str(&format!("&set[{name}]={}", escaped(value)));
        }
        let cookie = self.cookie.as_ref().map(|id| format!("Cookie: PHPSESSID={id}\r\n"));
        let mut stream = TcpStream::connect((server, 80))?;
        stream.set_read_timeout(Some(PAGE_TIMEOUT))?;
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n{}\r\n",
            cookie.unwrap_or_default()
        );
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
        for line in head.lines() {
            if let Some(rest) = line.strip_prefix("Set-Cookie: PHPSESSID=") {
                self.cookie = rest.split(';').next().map(str::to_owned);
            }
        }
        // nginx sends a page of unknown length in chunks: the JSON is the line with braces.
        let line = body.lines().find(|line| line.starts_with('{'));
        ensure!(line.is_some(), "no page: {answer}");
        Ok(serde_json::from_str(line.unwrap_or_default())?)
    }
}

/// The text as it may stand in a query.
fn escaped(text: &str) -> String {
    text.bytes()
        .map(|byte| {
            if byte.is_ascii_alphanumeric() {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02x}")
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::escaped;

    #[test]
    fn what_a_query_cannot_hold_is_escaped() {
        assert_eq!(
            escaped("tcp://198.18.0.1:11211,é"),
            "tcp%3a%2f%2f198%2e18%2e0%2e1%3a11211%2c%c3%a9"
        );
    }
}
