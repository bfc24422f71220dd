//! `-Z` and the `ssl_*` words of `-o`.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::{Refusal, TlsPrefix};
use crate::server::tls::{Terms, Verify};

/// What the command line says about TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsOptions {
    /// `-Z`.
    pub enabled: bool,
    /// `ssl_chain_cert`.
    pub chain: Option<PathBuf>,
    /// `ssl_key`.
    pub key: Option<PathBuf>,
    /// `ssl_ca_cert`.
    pub ca: Option<PathBuf>,
    /// `ssl_verify_mode`.
    pub verify: Verify,
    /// The rest.
    pub terms: Terms,
}

impl TlsOptions {
    /// Takes one word; false if it is none of TLS's.
    pub(super) fn take(&mut self, name: &str, value: Option<&str>) -> Result<bool, Refusal> {
        match name {
            "ssl_chain_cert" => self.chain = Some(path(name, value)?),
            "ssl_key" => self.key = Some(path(name, value)?),
            "ssl_ca_cert" => self.ca = Some(path(name, value)?),
            "ssl_verify_mode" => {
                self.verify = match number(name, value)? {
                    0 => Verify::None,
                    // "Once" is about renegotiation, which there is none of.
                    1 | 3 => Verify::Request,
                    2 => Verify::Require,
                    _ => {
                        return Err(Refusal::new(
                            1,
                            "Invalid ssl_verify_mode. Use help to see valid options.",
                        ));
                    }
                };
            }
            "ssl_keyformat" => {
                self.terms.key_der = match number(name, value)? {
                    1 => false,
                    2 => true,
                    _ => return Err(Refusal::new(1, "ssl_keyformat: write 1 (PEM) or 2 (ASN1)")),
                };
            }
            "ssl_min_version" => {
                self.terms.tls13_only = match number(name, value)? {
                    2 => false,
                    3 => true,
                    0 | 1 => {
                        let text = "ssl_min_version: TLS 1.0 and 1.1 are broken and not \
                                    implemented; write 2 (TLS 1.2) or 3 (TLS 1.3)";
                        return Err(Refusal::new(1, text));
                    }
                    _ => {
                        return Err(Refusal::new(
                            1,
                            "Invalid ssl_min_version. Use help to see valid options.",
                        ));
                    }
                };
            }
            "ssl_wbuf_size" => {
                let kilobytes = number(name, value)?;
                if !(1..=1024).contains(&kilobytes) {
                    return Err(Refusal::new(1, "ssl_wbuf_size: write kilobytes, 1 to 1024"));
                }
                self.terms.wbuf_len = kilobytes << 10;
            }
            "ssl_session_cache" => self.terms.session_cache = true,
            "ssl_ciphers" => {
                let text = "ssl_ciphers: the list is rustls's own, AEAD suites with forward \
                            secrecy alone; leave it out";
                return Err(Refusal::new(1, text));
            }
            "ssl_kernel_tls" => {
                let text = "ssl_kernel_tls: records are sealed in the process; leave it out";
                return Err(Refusal::new(1, text));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// What a listener without a prefix asks of clients; none for plain text.
    #[must_use]
    pub fn default_for_listeners(&self) -> Option<Verify> {
        self.enabled.then_some(self.verify)
    }

    /// What a listener asks of clients; none for plain text.
    #[must_use]
    pub fn of(&self, prefix: TlsPrefix) -> Option<Verify> {
        match prefix {
            TlsPrefix::Default => self.default_for_listeners(),
            TlsPrefix::Off => None,
            TlsPrefix::Basic => Some(Verify::None),
            TlsPrefix::Mutual => Some(Verify::Require),
        }
    }

    /// The paths, to be made absolute.
    pub(super) fn paths(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        [&mut self.chain, &mut self.key, &mut self.ca].into_iter().flatten()
    }

    /// What the words ask of each other. `mutual`: some listener asks for certificates.
    pub(super) fn check(&self, mutual: bool) -> Result<(), Refusal> {
        let refused = |text: &str| Err(Refusal::new(crate::config::EXIT_USAGE, text));
        if !self.enabled {
            return if *self == Self::default() { Ok(()) } else { refused("-o ssl_*: needs -Z") };
        }
        if self.chain.is_none() || self.key.is_none() {
            return refused("-Z needs -o ssl_chain_cert=FILE,ssl_key=FILE");
        }
        if (mutual || self.verify != Verify::None) && self.ca.is_none() {
            return refused(
                "clients' certificates are asked for: name who vouches for them by -o ssl_ca_cert=FILE",
            );
        }
        Ok(())
    }
}

fn path(name: &str, value: Option<&str>) -> Result<PathBuf, Refusal> {
    match value {
        Some(value) if !value.is_empty() => Ok(PathBuf::from(value)),
        _ => Err(Refusal::new(1, format!("Missing {name} argument"))),
    }
}

fn number(name: &str, value: Option<&str>) -> Result<usize, Refusal> {
    let value = value.ok_or_else(|| Refusal::new(1, format!("Missing {name} argument")))?;
    value.parse().map_err(|_| Refusal::new(1, format!("could not parse argument to {name}")))
}
