//! The two sides of the list as the keeper sees them: the guard's maps and the serving process.
#![forbid(unsafe_code)]

use std::rc::Rc;
use std::sync::{Arc, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use ipnet::IpNet;
use tokio::sync::Mutex;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::allowlist::{Allowlist, Entry};
use crate::control::keeper::{Kernel, UserSide};
use crate::guard::Guard;
use crate::guard::written::Writing;
use crate::link::ParentEnd;

/// The guard, for the thread that watches it and for those who change the list or look.
#[derive(Clone, Debug)]
pub(crate) struct SharedGuard {
    guard: Arc<std::sync::Mutex<Guard>>,
    /// The list that is on its way into the kernel.
    writing: Arc<Writing>,
}

impl SharedGuard {
    /// Shares a guard.
    pub(crate) fn new(guard: Guard) -> Self {
        let guard = Arc::new(std::sync::Mutex::new(guard));
        Self { guard, writing: Arc::default() }
    }

    /// The guard, which nobody else has until this is dropped: for milliseconds.
    pub(crate) fn hold(&self) -> MutexGuard<'_, Guard> {
        // A panic ends the process.
        self.guard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Entries of a list that are written, and that there will be; none while no list is.
    pub(crate) fn written(&self) -> Option<(usize, usize)> {
        self.writing.now()
    }
}

/// The socket pair's end, one request at a time.
pub(crate) type SharedLink = Rc<Mutex<ParentEnd>>;

/// The list in the guard's maps; none where there is no guard.
pub(crate) struct KernelSide {
    guard: Option<SharedGuard>,
    /// The list before the one in force, as long as it is being removed.
    removal: Option<JoinHandle<()>>,
}

impl KernelSide {
    pub(crate) fn new(guard: Option<SharedGuard>) -> Self {
        Self { guard, removal: None }
    }
}

impl Kernel for KernelSide {
    fn insert(&mut self, entry: &Entry) -> Result<()> {
        match &self.guard {
            Some(guard) => Ok(guard.hold().insert(entry)?),
            None => Ok(()),
        }
    }

    fn remove(&mut self, prefix: IpNet) -> Result<()> {
        match &self.guard {
            Some(guard) => Ok(guard.hold().remove(prefix).map(drop)?),
            None => Ok(()),
        }
    }

    async fn replace(&mut self, list: &Arc<Allowlist>) -> Result<()> {
        let Some(guard) = &self.guard else { return Ok(()) };
        // The tables hold two lists, not three.
        if let Some(removal) = self.removal.take() {
            removal.await.context(REMOVING)?;
        }
        let mut successor = guard.hold().successor(list.sizes())?;
        let (list, writing) = (Arc::clone(list), Arc::clone(&guard.writing));
        // The guard is watched while a long list is written.
        let filled = spawn_blocking(move || successor.fill(&list, &writing).map(|()| successor));
        let successor = filled.await.context("writing the list")??;
        let predecessor = guard.hold().switch(successor)?;
        self.removal = Some(spawn_blocking(move || predecessor.remove()));
        Ok(())
    }
}

const REMOVING: &str = "removing the list before";

/// The list of the serving process.
pub(crate) struct ServingSide(pub(crate) SharedLink);

impl UserSide for ServingSide {
    async fn change(&mut self, insert: Vec<Entry>, remove: Vec<IpNet>) -> Result<()> {
        Ok(self.0.lock().await.change(insert, remove).await?)
    }

    async fn replace(&mut self, list: &Allowlist) -> Result<()> {
        Ok(self.0.lock().await.replace(list.entries()).await?)
    }

    async fn enforce(&mut self) -> Result<u64> {
        Ok(self.0.lock().await.enforce().await?)
    }
}
