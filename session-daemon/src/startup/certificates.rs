//! Certificates and key: read and tried by the parent, handed to the serving process, which opens
//! no file.
#![forbid(unsafe_code)]

use std::path::Path;

use anyhow::{Context, Result};

use crate::config::Config;
use crate::control::sides::SharedLink;
use crate::link::Request;
use crate::server::tls::{Greetings, Material};
use crate::startup::credentials::{Kept, read};

/// What the files of `-o ssl_*` hold; none without `-Z`.
///
/// # Errors
/// A file that cannot be read, or files that do not go together.
pub(super) fn configured(config: &Config) -> Result<Option<Material>> {
    let tls = &config.tls;
    let (true, Some(chain), Some(key)) = (tls.enabled, &tls.chain, &tls.key) else {
        return Ok(None);
    };
    let file = |name: &str, path: &Path, kept| {
        read(path, kept).with_context(|| format!("{name}={}", path.display()))
    };
    let material = Material {
        chain: file("ssl_chain_cert", chain, Kept::Open)?,
        key: file("ssl_key", key, Kept::Secret)?,
        ca: tls.ca.as_ref().map(|ca| file("ssl_ca_cert", ca, Kept::Open)).transpose()?,
    };
    Greetings::new(&material, &tls.terms).context("-Z")?;
    Ok(Some(material))
}

/// Reads the files again and hands them over; what was read before stays when they cannot be.
pub(super) async fn reload(config: &Config, link: &SharedLink) {
    let material = match configured(config) {
        Ok(None) => return,
        Ok(Some(material)) => material,
        Err(error) => return log::error!("the certificates stay as they were: {error:#}"),
    };
    match link.lock().await.done(&Request::Tls(material)).await {
        Ok(()) => log::info!("the certificates were read again"),
        Err(error) => log::error!("the certificates stay as they were: {error}"),
    }
}
