//! The boot rule: whether one keeps the port closed, and who will lift it.
#![forbid(unsafe_code)]

use serde_json::Value;

use crate::control::ctl::boot::{Verdict, standing, verdict};
use crate::control::ctl::doctor::{Finding, Plan};

pub(super) fn finding(plan: &Plan, status: Option<&Value>) -> Finding {
    match standing() {
        Ok(standing) => told(plan.port, verdict(plan.port, &standing, status)),
        Err(error) => Finding::warn("boot rule", format!("{error:#}"), "run it as root"),
    }
}

pub(super) fn told(port: u16, verdict: Verdict) -> Finding {
    let check = "boot rule";
    let closed = format!("nftables keeps port {port} closed to everybody");
    let clear = format!("sessionctl -p {port} boot-rule clear");
    match verdict {
        Verdict::None => Finding::ok(check, "none stands"),
        Verdict::Waits => Finding::warn(
            check,
            format!("{closed} until sessiond has its guard on every interface, and none answers"),
            format!("start sessiond; or {clear}, which opens the port to whoever comes"),
        ),
        Verdict::BeingLifted => Finding::ok(check, "sessiond is about to lift it"),
        Verdict::Incomplete => Finding::fail(
            check,
            format!("{closed}: the guard is not on every interface"),
            format!("sessionctl status names the interfaces; or {clear}"),
        ),
        Verdict::ForEver => {
            Finding::fail(check, format!("{closed}: this daemon has no guard that lifts it"), clear)
        }
    }
}
