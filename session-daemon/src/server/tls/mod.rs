//! TLS by rustls: what the operator chose, and how a listener greets its clients. It owns keys
//! and certificates in memory; it never opens a file, and plain connections never come by it.
#![forbid(unsafe_code)]

pub mod session;

use crate::clock::Now;
use arc_swap::ArcSwap;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, ServerSessionMemoryCache, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig, crypto, version};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Sessions that can be taken up again, where that was asked for.
const SESSIONS_CACHED: usize = 4096;

/// Bytes of encrypted answers that one connection may hold, unless told otherwise (memcached's
/// `ssl_wbuf_size`).
pub const WBUF_LEN: usize = 16 << 10;

/// Whether a client has to show a certificate (memcached's `ssl_verify_mode`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verify {
    /// It is not asked for one.
    #[default]
    None,
    /// It is asked, and a certificate that it shows has to be good.
    Request,
    /// It is not served without a good one.
    Require,
}

/// What the operator chose about TLS, files apart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// The key's file is DER, not PEM (`ssl_keyformat=2`).
    pub key_der: bool,
    /// TLS 1.2 is refused (`ssl_min_version=3`).
    pub tls13_only: bool,
    /// Sessions can be taken up again (`ssl_session_cache`).
    pub session_cache: bool,
    /// Bytes of encrypted answers that one connection may hold (`ssl_wbuf_size`).
    pub wbuf_len: usize,
}

impl Default for Terms {
    fn default() -> Self {
        Self { key_der: false, tls13_only: false, session_cache: false, wbuf_len: WBUF_LEN }
    }
}

/// What the files hold.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Material {
    /// Our certificate and those that vouch for it, PEM.
    pub chain: Vec<u8>,
    /// The key of the first of them.
    pub key: Vec<u8>,
    /// Who vouches for clients, PEM.
    pub ca: Option<Vec<u8>>,
}

impl fmt::Debug for Material {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the key.
        formatter.write_str("Material")
    }
}

/// What is wrong with the files, by the option that names them.
#[derive(Debug, thiserror::Error)]
pub enum MaterialError {
    /// No certificate can be read.
    #[error("ssl_chain_cert: {0}")]
    Chain(String),
    /// No key can be read.
    #[error("ssl_key: {0}")]
    Key(String),
    /// The certificates that vouch for clients cannot be used.
    #[error("ssl_ca_cert: {0}")]
    Ca(String),
    /// They do not go together.
    #[error("certificate and key cannot be used: {0}")]
    Pair(#[from] rustls::Error),
}

/// How clients are greeted, by what is asked of them.
#[derive(Debug)]
pub struct Greetings {
    plain: Arc<ServerConfig>,
    request: Option<Arc<ServerConfig>>,
    require: Option<Arc<ServerConfig>>,
}

impl Greetings {
    /// Makes greetings of what the files hold.
    ///
    /// # Errors
    /// What cannot be used.
    pub fn new(material: &Material, terms: &Terms) -> Result<Self, MaterialError> {
        let roots = material.ca.as_deref().map(roots).transpose()?;
        let with = |verify| greeting(material, terms, roots.clone(), verify);
        let asking = |verify| roots.is_some().then(|| with(verify)).transpose();
        Ok(Self {
            plain: with(Verify::None)?,
            request: asking(Verify::Request)?,
            require: asking(Verify::Require)?,
        })
    }

    /// The greeting for a listener; none when it needs certificates that nobody vouches for.
    #[must_use]
    pub fn of(&self, verify: Verify) -> Option<Arc<ServerConfig>> {
        match verify {
            Verify::None => Some(Arc::clone(&self.plain)),
            Verify::Request => self.request.clone(),
            Verify::Require => self.require.clone(),
        }
    }
}

fn greeting(
    material: &Material,
    terms: &Terms,
    roots: Option<Arc<RootCertStore>>,
    verify: Verify,
) -> Result<Arc<ServerConfig>, MaterialError> {
    let provider = Arc::new(crypto::ring::default_provider());
    let both = [&version::TLS13, &version::TLS12];
    let versions = if terms.tls13_only { &both[..1] } else { &both[..] };
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)?;
    let builder = match (verify, roots) {
        (Verify::None, _) | (_, None) => builder.with_no_client_auth(),
        (_, Some(roots)) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
            let verifier = match verify {
                Verify::Require => verifier,
                Verify::None | Verify::Request => verifier.allow_unauthenticated(),
            };
            let verifier =
                verifier.build().map_err(|error| MaterialError::Ca(error.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(chain(&material.chain)?, key(material, terms)?)?;
    if terms.session_cache {
        config.session_storage = ServerSessionMemoryCache::new(SESSIONS_CACHED);
    } else {
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    Ok(Arc::new(config))
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.map_err(|error| error.to_string())?;
    if all.is_empty() { Err("there is no certificate in it".to_owned()) } else { Ok(all) }
}

fn chain(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, MaterialError> {
    certificates(pem).map_err(MaterialError::Chain)
}

fn key(material: &Material, terms: &Terms) -> Result<PrivateKeyDer<'static>, MaterialError> {
    if terms.key_der {
        return PrivateKeyDer::try_from(material.key.clone())
            .map_err(|error| MaterialError::Key(error.to_owned()));
    }
    PrivateKeyDer::from_pem_slice(&material.key)
        .map_err(|error| MaterialError::Key(error.to_string()))
}

fn roots(pem: &[u8]) -> Result<Arc<RootCertStore>, MaterialError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(pem).map_err(MaterialError::Ca)? {
        store.add(certificate).map_err(|error| MaterialError::Ca(error.to_string()))?;
    }
    Ok(Arc::new(store))
}

/// TLS as all workers share it.
#[derive(Debug)]
pub struct Tls {
    greetings: ArcSwap<Greetings>,
    terms: Terms,
    refreshed_ns: AtomicU64,
    /// A client has asked for the files to be read again.
    asked: AtomicBool,
}

impl Tls {
    /// TLS with the first certificates.
    ///
    /// # Errors
    /// What cannot be used.
    pub fn new(material: &Material, terms: Terms) -> Result<Self, MaterialError> {
        let greetings = ArcSwap::from_pointee(Greetings::new(material, &terms)?);
        let refreshed_ns = AtomicU64::new(Now::sample().boottime_ns);
        Ok(Self { greetings, terms, refreshed_ns, asked: AtomicBool::new(false) })
    }

    /// Greets with other certificates from now on; who was greeted keeps the old ones.
    ///
    /// # Errors
    /// What cannot be used; the old ones stay.
    pub fn refresh(&self, material: &Material) -> Result<(), MaterialError> {
        self.greetings.store(Arc::new(Greetings::new(material, &self.terms)?));
        // Relaxed: only shown in `stats`.
        self.refreshed_ns.store(Now::sample().boottime_ns, Ordering::Relaxed);
        Ok(())
    }

    /// Asks whoever can for the files to be read again.
    pub fn ask(&self) {
        // Relaxed: a wish, of which nothing else is to be seen.
        self.asked.store(true, Ordering::Relaxed);
    }

    /// Whether that was asked since this was called last.
    #[must_use]
    pub fn take_asked(&self) -> bool {
        self.asked.swap(false, Ordering::Relaxed)
    }

    /// When the certificates were read last, on the boot-time clock.
    #[must_use]
    pub fn refreshed_ns(&self) -> u64 {
        self.refreshed_ns.load(Ordering::Relaxed)
    }

    /// What the operator chose.
    #[must_use]
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    fn greeting(&self, verify: Verify) -> Option<Arc<ServerConfig>> {
        self.greetings.load().of(verify)
    }
}
