//! Figures for Prometheus: how they are called, and how they are served.
//! It reads statistics by memcached's names and owns no counter.
#![forbid(unsafe_code)]

pub(crate) mod http;
pub(crate) mod text;

/// Statistics by topic, names and values as `stats` has them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures {
    /// `stats`.
    pub(crate) general: Vec<(String, String)>,
    /// `stats settings`.
    pub(crate) settings: Vec<(String, String)>,
    /// `stats items`.
    pub(crate) items: Vec<(String, String)>,
    /// `stats slabs`.
    pub(crate) slabs: Vec<(String, String)>,
    /// `stats guard`.
    pub(crate) guard: Vec<(String, String)>,
}
