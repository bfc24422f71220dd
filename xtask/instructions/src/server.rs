//! What of the server's room a request runs through.
#![forbid(unsafe_code)]

#[path = "../../../session-daemon/src/server/administration.rs"]
pub(crate) mod administration;
#[path = "../../../session-daemon/src/server/binary.rs"]
pub(crate) mod binary;
#[path = "../../../session-daemon/src/server/binding.rs"]
pub(crate) mod binding;
#[path = "../../../session-daemon/src/server/buffers.rs"]
pub(crate) mod buffers;
#[path = "../../../session-daemon/src/server/connection.rs"]
pub(crate) mod connection;
#[path = "../../../session-daemon/src/server/dump.rs"]
pub(crate) mod dump;
#[path = "../../../session-daemon/src/server/fetch.rs"]
pub(crate) mod fetch;
#[path = "../../../session-daemon/src/server/incoming.rs"]
pub(crate) mod incoming;
#[path = "../../../session-daemon/src/server/login.rs"]
pub(crate) mod login;
#[path = "../../../session-daemon/src/server/meta.rs"]
pub(crate) mod meta;
#[path = "../../../session-daemon/src/server/prefixes.rs"]
pub(crate) mod prefixes;
#[path = "../../../session-daemon/src/server/reply.rs"]
pub(crate) mod reply;
#[path = "../../../session-daemon/src/server/requests.rs"]
pub(crate) mod requests;
#[path = "../../../session-daemon/src/server/talk.rs"]
pub(crate) mod talk;
#[path = "../../../session-daemon/src/server/values.rs"]
pub(crate) mod values;
#[path = "../../../session-daemon/src/server/watchers.rs"]
pub(crate) mod watchers;
