//! The two sides of the list as the keeper sees them: the guard's maps and the serving process.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::rc::Rc;

use anyhow::Result;
use ipnet::IpNet;
use tokio::sync::Mutex;

use crate::allowlist::{Allowlist, Entry};
use crate::control::keeper::{Kernel, UserSide};
use crate::guard::Guard;
use crate::link::ParentEnd;

/// The guard, borrowed between two awaits and never across one.
pub(crate) type SharedGuard = Rc<RefCell<Guard>>;
/// The socket pair's end, one request at a time.
pub(crate) type SharedLink = Rc<Mutex<ParentEnd>>;

/// The list in the guard's maps; none where there is no guard.
pub(crate) struct KernelSide(pub(crate) Option<SharedGuard>);

impl Kernel for KernelSide {
    fn insert(&mut self, entry: &Entry) -> Result<()> {
        match &self.0 {
            Some(guard) => Ok(guard.borrow_mut().insert(entry)?),
            None => Ok(()),
        }
    }

    fn remove(&mut self, prefix: IpNet) -> Result<()> {
        match &self.0 {
            Some(guard) => Ok(guard.borrow_mut().remove(prefix).map(drop)?),
            None => Ok(()),
        }
    }

    fn replace(&mut self, list: &Allowlist) -> Result<()> {
        match &self.0 {
            Some(guard) => Ok(guard.borrow_mut().replace(list)?),
            None => Ok(()),
        }
    }
}

/// The list of the serving process.
pub(crate) struct ServingSide(pub(crate) SharedLink);

impl UserSide for ServingSide {
    async fn change(&mut self, insert: Vec<Entry>, remove: Vec<IpNet>) -> Result<()> {
        Ok(self.0.lock().await.change(insert, remove).await?)
    }

    async fn replace(&mut self, list: &Allowlist) -> Result<()> {
        let entries: Vec<Entry> = list.entries().cloned().collect();
        Ok(self.0.lock().await.replace(&entries).await?)
    }

    async fn enforce(&mut self) -> Result<u64> {
        Ok(self.0.lock().await.enforce().await?)
    }
}
