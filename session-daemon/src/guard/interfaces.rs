//! Which devices the guard has to stand on.
//!
//! It owns that decision and nothing else: it is pure, netlink's answers go in.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

const IFF_UP: u32 = 0x1;
const IFF_LOOPBACK: u32 = 0x8;
const IFF_SLAVE: u32 = 0x800;
const ARPHRD_ETHER: u16 = 1;

/// Which interfaces to guard.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interfaces {
    /// Every interface but the loopback, those to come included.
    #[default]
    All,
    /// These, by name; one that goes away and comes back is guarded again.
    Named(Vec<String>),
}

/// How a program stands on a device, as `ip link` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attached {
    Native,
    Generic,
    Offloaded,
}

/// What netlink says about a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) ifindex: u32,
    pub(super) name: String,
    /// `ARPHRD_*`.
    pub(super) hardware: u16,
    /// `IFF_*`.
    pub(super) flags: u32,
    /// `vlan`, `veth`, `bridge`, ...; empty for a physical device.
    pub(super) kind: String,
    /// Device that this one sits on.
    pub(super) parent: Option<u32>,
    /// The parent is in another namespace, where this guard sees nothing.
    pub(super) parent_is_elsewhere: bool,
    /// Bridge or bond that this one belongs to.
    pub(super) master: Option<u32>,
    /// XDP programs on it.
    pub(super) xdp: Vec<(Attached, u32)>,
}

impl Interface {
    pub(super) fn is_loopback(&self) -> bool {
        self.flags & IFF_LOOPBACK != 0
    }

    pub(super) fn is_up(&self) -> bool {
        self.flags & IFF_UP != 0
    }

    /// Whether its packets begin with an Ethernet header, which an XDP program reads.
    pub(super) fn is_ethernet(&self) -> bool {
        self.hardware == ARPHRD_ETHER
    }
}

/// What becomes of one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// The guard stands on it.
    Guard,
    /// Every packet that it delivers has passed the guard on this device before.
    CoveredBy(u32),
    /// Not selected.
    Leave,
}

/// Plans for all devices, in the order given. Names that match no device are returned second.
pub(super) fn plan(interfaces: &[Interface], wanted: &Interfaces) -> (Vec<Plan>, Vec<String>) {
    let selected = |interface: &Interface| match wanted {
        Interfaces::All => !interface.is_loopback(),
        Interfaces::Named(names) => names.contains(&interface.name),
    };
    let plans = interfaces.iter().map(|interface| {
        if !selected(interface) {
            return Plan::Leave;
        }
        match lowest(interface, interfaces, &selected) {
            Some(ifindex) => Plan::CoveredBy(ifindex),
            None => Plan::Guard,
        }
    });
    let absent = match wanted {
        Interfaces::All => Vec::new(),
        Interfaces::Named(names) => {
            let known = |name: &String| interfaces.iter().any(|interface| interface.name == *name);
            names.iter().filter(|name| !known(name)).cloned().collect()
        }
    };
    (plans.collect(), absent)
}

/// The selected device below all others that cover one: of a VLAN on a VLAN, the one below both.
fn lowest(
    interface: &Interface,
    interfaces: &[Interface],
    selected: &impl Fn(&Interface) -> bool,
) -> Option<u32> {
    let below = |one: &Interface| {
        let ifindex = lower(one)?;
        interfaces.iter().find(|other| other.ifindex == ifindex && selected(other))
    };
    let first = below(interface);
    // No chain is longer than there are devices, whatever a listing says that changed under way.
    let chain = std::iter::successors(first, |one| below(one)).take(interfaces.len());
    chain.last().map(|one| one.ifindex)
}

/// The device whose program sees this one's packets first: a VLAN's parent, a bond's master.
/// Not a macvlan's parent, because its children also speak among themselves.
fn lower(interface: &Interface) -> Option<u32> {
    if interface.kind == "vlan" && !interface.parent_is_elsewhere {
        return interface.parent;
    }
    if interface.flags & IFF_SLAVE != 0 {
        return interface.master;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(ifindex: u32, name: &str) -> Interface {
        Interface {
            ifindex,
            name: name.to_owned(),
            hardware: ARPHRD_ETHER,
            flags: IFF_UP,
            ..Interface::default()
        }
    }

    fn host() -> Vec<Interface> {
        vec![
            Interface { flags: IFF_UP | IFF_LOOPBACK, ..interface(1, "lo") },
            interface(2, "eth0"),
            Interface { kind: "vlan".into(), parent: Some(2), ..interface(3, "eth0.5") },
            Interface { kind: "bond".into(), ..interface(4, "bond0") },
            Interface { flags: IFF_UP | IFF_SLAVE, master: Some(4), ..interface(5, "eth1") },
            Interface { kind: "macvlan".into(), parent: Some(2), ..interface(6, "mac0") },
            Interface {
                kind: "vlan".into(),
                parent: Some(2),
                parent_is_elsewhere: true,
                ..interface(7, "vlan7")
            },
            Interface { kind: "vlan".into(), parent: Some(3), ..interface(8, "eth0.5.6") },
        ]
    }

    #[test]
    fn all_but_the_loopback() {
        let (plans, absent) = plan(&host(), &Interfaces::All);
        let expected = [
            Plan::Leave,
            Plan::Guard,
            Plan::CoveredBy(2),
            Plan::Guard,
            Plan::CoveredBy(4),
            Plan::Guard,
            Plan::Guard,
            // Not by the VLAN that it is on, which has no program itself.
            Plan::CoveredBy(2),
        ];
        assert_eq!((plans.as_slice(), absent.as_slice()), (expected.as_slice(), [].as_slice()));
    }

    #[test]
    fn a_named_vlan_without_its_parent_is_guarded_itself() {
        let wanted = Interfaces::Named(vec!["eth0.5".into(), "wan".into()]);
        let (plans, absent) = plan(&host(), &wanted);
        assert_eq!(plans[2], Plan::Guard);
        assert!(plans.iter().enumerate().all(|(idx, plan)| idx == 2 || *plan == Plan::Leave));
        assert_eq!(absent, ["wan"]);
    }
}
