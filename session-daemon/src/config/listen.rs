//! The words of `-l`.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use crate::config::value::usage;
use crate::config::{Port, Refusal, value};

/// One word of `-l`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenAddress {
    /// Host name or address without brackets; `*` stands for all IPv4 and IPv6 addresses.
    pub host: String,
    /// The port behind the host; none for `-p`'s.
    pub port: Option<u16>,
    /// What its prefix says about TLS.
    pub tls: TlsPrefix,
    /// The word itself, for messages.
    pub word: String,
}

/// What the prefix of one address says about TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TlsPrefix {
    /// None: as `-Z` and `ssl_verify_mode` say.
    #[default]
    Default,
    /// `notls:`.
    Off,
    /// `btls:`: no certificate is asked for.
    Basic,
    /// `mtls:`: nobody is served without a good certificate.
    Mutual,
}

/// Prefixes of memcached's that choose a protocol or a tag for one address.
const PREFIXES: [&str; 2] = ["proto[", "tag"];

/// Splits the argument of one `-l` at commas and semicolons.
///
/// # Errors
/// An empty word, a bad port, or a prefix such as `proto[` that would have to be honoured.
pub fn split_listen(argument: &str) -> Result<Vec<ListenAddress>, Refusal> {
    argument.split([',', ';']).map(|word| listen_address(word.trim())).collect()
}

fn listen_address(word: &str) -> Result<ListenAddress, Refusal> {
    let prefixes =
        [("notls:", TlsPrefix::Off), ("btls:", TlsPrefix::Basic), ("mtls:", TlsPrefix::Mutual)];
    let prefixed = |(prefix, tls)| Some((tls, word.strip_prefix(prefix)?));
    let (tls, text) = prefixes.into_iter().find_map(prefixed).unwrap_or((TlsPrefix::Default, word));
    if text.is_empty() {
        return Err(usage("-l: empty address; write host, host:port or [v6]:port"));
    }
    if PREFIXES.iter().any(|prefix| text.starts_with(prefix)) && text.contains([']', ':']) {
        return Err(usage(format!("-l {word}: its prefix is not served by sessiond")));
    }
    let (host, port) = host_and_port(text)?;
    let port = match port.map(value::port).transpose()? {
        None => None,
        Some(Port::Number(number)) => Some(number),
        Some(Port::Any | Port::Off) => {
            return Err(usage(format!("-l {word}: the port must be from 1 to 65535")));
        }
    };
    Ok(ListenAddress { host: host.to_owned(), port, tls, word: word.to_owned() })
}

fn host_and_port(text: &str) -> Result<(&str, Option<&str>), Refusal> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest
            .split_once(']')
            .ok_or_else(|| usage(format!("-l {text}: the bracket is not closed")))?;
        return match rest {
            "" => Ok((host, None)),
            _ => match rest.strip_prefix(':') {
                Some(port) => Ok((host, Some(port))),
                None => Err(usage(format!("-l {text}: write [v6]:port"))),
            },
        };
    }
    match text.split_once(':') {
        // More than one colon outside brackets: a bare IPv6 address.
        Some((_, rest)) if rest.contains(':') => Ok((text, None)),
        Some(("", _)) => Err(usage(format!("-l {text}: the host is missing"))),
        Some((host, port)) => Ok((host, Some(port))),
        None => Ok((text, None)),
    }
}
