//! The kernel plane at a start: made before the serving process has it, off while a store is
//! opened, on when it serves.
//!
//! What comes meanwhile waits in the daemon's own socket, so nobody goes without an answer.
#![forbid(unsafe_code)]

use std::os::fd::AsFd;

use anyhow::{Context, Result, bail};

use crate::clock;
use crate::config::{Config, KernelPlane};
use crate::control::sides::SharedGuard;
use crate::guard::Guard;
use crate::guard::plane::{PlaneMaps, Region};
use crate::link::{ParentEnd, PlaneFacts};
use crate::startup::child::store_config;
use crate::startup::memory;
use crate::startup::parent::{NOT_STARTED, Prepared};
use crate::store::Store;

const CONTEXT: &str = "--kernel-plane";

/// Refuses a daemon that no packet reaches by an interface.
pub(super) fn check(config: &Config, prepared: &Prepared) -> Result<()> {
    if config.kernel_plane.is_some() && prepared.guarded_ports.is_empty() {
        bail!("--kernel-plane: nothing is served but to this host itself, over no interface");
    }
    Ok(())
}

/// Makes the plane, with the region that the last daemon of this list has left. Without
/// `--kernel-plane` what such a daemon has left goes.
pub(super) fn make(
    config: &Config,
    guard: Option<&mut Guard>,
    region: Region,
) -> Result<Option<PlaneMaps>> {
    let Some(guard) = guard else { return Ok(None) };
    if config.kernel_plane.is_none() {
        guard.drop_plane().context("removing a kernel plane")?;
        return Ok(None);
    }
    let region_len = Store::map_len(&store_config(config)?)?;
    guard.make_plane(region_len, region).map(Some).context(CONTEXT)
}

/// Gives the serving process its end. Before that nothing is answered any more from a store that
/// is about to be opened.
pub(super) async fn lend(
    end: &mut ParentEnd,
    guard: Option<&mut Guard>,
    maps: Option<PlaneMaps>,
) -> Result<()> {
    let (Some(guard), Some(maps)) = (guard, maps) else { return Ok(()) };
    guard.take_plane_off().context(CONTEXT)?;
    let boot_id = memory::boot_id()?;
    let facts = PlaneFacts {
        boot_id: [(boot_id >> 64) as u64, boot_id as u64],
        region_id: maps.facts.region_id,
        region_len: maps.facts.region_len,
        is_new: maps.facts.is_new,
        cpus: maps.facts.cpus,
        clock_ahead_ns: clock::ahead_ns(),
    };
    let PlaneMaps { region, orders, reports, .. } = &maps;
    end.plane([region.as_fd(), orders.as_fd(), reports.as_fd()], facts).await.context(NOT_STARTED)
}

/// Has the plane answer, in front of a serving process that serves.
pub(super) fn put_on(guard: Option<&mut Guard>) -> Result<()> {
    guard.map_or(Ok(()), |guard| guard.put_plane_on().context(CONTEXT))
}

/// The daemon ends, and the plane with it unless it is to persist. Whoever cannot say so leaves it
/// to the lease, which is not renewed any more.
pub(super) fn leave(config: &Config, guard: Option<&SharedGuard>) {
    let (Some(KernelPlane::Ends), Some(guard)) = (config.kernel_plane, guard) else { return };
    if let Err(error) = guard.hold().take_plane_off() {
        log::warn!("kernel plane: {error}");
    }
}
