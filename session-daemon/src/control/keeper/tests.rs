//! The keeper between two fake sides: orders, failures at every call, what a restart finds.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::net::IpAddr;
use std::rc::Rc;

use super::*;
use crate::allowlist::parse::parse_prefix;

const NOW: Now = Now { realtime_ns: 1_000_000, boottime_ns: 1_000 };

/// What both sides were asked, in order, and what they hold.
#[derive(Default)]
struct World {
    calls: Vec<String>,
    kernel: Allowlist,
    user: Allowlist,
    /// The call, counted from 1, that fails.
    failing: Option<usize>,
}

impl World {
    fn call(&mut self, name: &str) -> Result<()> {
        self.calls.push(name.to_owned());
        ensure!(self.failing != Some(self.calls.len()), "on purpose");
        Ok(())
    }
}

struct Side(Rc<RefCell<World>>);

impl Kernel for Side {
    fn insert(&mut self, entry: &Entry) -> Result<()> {
        let mut world = self.0.borrow_mut();
        world.call("kernel insert")?;
        world.kernel.insert(entry.clone());
        Ok(())
    }
    fn remove(&mut self, prefix: IpNet) -> Result<()> {
        let mut world = self.0.borrow_mut();
        world.call("kernel remove")?;
        world.kernel.remove(prefix);
        Ok(())
    }
    async fn replace(&mut self, list: &Arc<Allowlist>) -> Result<()> {
        let mut world = self.0.borrow_mut();
        world.call("kernel replace")?;
        world.kernel = Allowlist::clone(list);
        Ok(())
    }
}

impl UserSide for Side {
    async fn change(&mut self, insert: Vec<Entry>, remove: Vec<IpNet>) -> Result<()> {
        let mut world = self.0.borrow_mut();
        world.call("user change")?;
        world.user.extend(insert);
        for prefix in remove {
            world.user.remove(prefix);
        }
        Ok(())
    }
    async fn replace(&mut self, list: &Allowlist) -> Result<()> {
        let mut world = self.0.borrow_mut();
        world.call("user replace")?;
        world.user = list.clone();
        Ok(())
    }
    async fn enforce(&mut self) -> Result<u64> {
        self.0.borrow_mut().call("enforce")?;
        Ok(2)
    }
}

struct Fixture {
    world: Rc<RefCell<World>>,
    keeper: Keeper<Side, Side>,
    directory: tempfile::TempDir,
}

fn net(prefix: &str) -> IpNet {
    parse_prefix(prefix).unwrap()
}

fn base() -> Allowlist {
    ["198.18.0.0/24", "2001:db8::/32"]
        .map(|prefix| Entry::new(net(prefix), Action::Allow, Origin::Config))
        .into_iter()
        .collect()
}

fn fixture() -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let world = Rc::new(RefCell::new(World { kernel: base(), user: base(), ..World::default() }));
    let file = OverlayFile::new(directory.path().join("overlay.json"));
    let side = || Side(Rc::clone(&world));
    let keeper = Keeper::new(base(), Overlay::default(), Some(file), side(), side());
    Fixture { world, keeper, directory }
}

impl Fixture {
    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.world.borrow_mut().calls)
    }

    fn fail_at(&self, call: usize) {
        let mut world = self.world.borrow_mut();
        world.calls.clear();
        world.failing = Some(call);
    }

    /// Both sides, the keeper and a daemon that starts now hold the same list.
    fn agrees(&self) {
        let world = self.world.borrow();
        assert!(self.keeper.list().diff(&world.kernel).is_empty(), "kernel");
        assert!(self.keeper.list().diff(&world.user).is_empty(), "user side");
        let file = OverlayFile::new(self.directory.path().join("overlay.json"));
        let restarted = file.read(NOW).unwrap().over(&self.keeper.base);
        assert!(self.keeper.list().diff(&restarted).is_empty(), "after a restart");
    }

    fn allowed(&self, source: &str) -> bool {
        let source: IpAddr = source.parse().unwrap();
        self.keeper.list().verdict(source, NOW.boottime_ns).allowed
    }
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
}

#[test]
fn allow_tells_the_user_side_first() {
    let mut fixture = fixture();
    let changed = run(fixture.keeper.allow(
        &[net("198.18.9.9")],
        None,
        &Note { comment: Some("why".to_owned()), ..Note::default() },
        Any::Refused,
        None,
        NOW,
    ))
    .unwrap();
    assert_eq!(fixture.calls(), ["user change", "kernel insert"]);
    assert_eq!(changed.diff.added.len(), 1);
    assert_eq!(changed.diff.added[0].origin, Origin::Control);
    assert!(fixture.allowed("198.18.9.9"));
    fixture.agrees();
}

#[test]
fn deny_and_remove_tell_the_kernel_first_and_reset_connections_last() {
    let mut fixture = fixture();
    let changed =
        run(fixture.keeper.deny(&[net("198.18.0.7")], Action::Deny, &Note::default(), None, NOW))
            .unwrap();
    assert_eq!(fixture.calls(), ["kernel insert", "user change", "enforce"]);
    assert_eq!(changed.reset, 2);
    assert!(!fixture.allowed("198.18.0.7") && fixture.allowed("198.18.0.8"));
    fixture.agrees();
    run(fixture.keeper.remove(&[net("198.18.0.0/24")], None, NOW)).unwrap();
    assert_eq!(fixture.calls(), ["kernel remove", "user change", "enforce"]);
    assert!(!fixture.allowed("198.18.0.8"));
    fixture.agrees();
    assert_eq!(fixture.keeper.taken_out(), [net("198.18.0.0/24")]);
}

#[test]
fn the_same_again_changes_nothing() {
    let mut fixture = fixture();
    let prefixes = [net("198.18.0.0/24")];
    let changed =
        run(fixture.keeper.allow(&prefixes, None, &Note::default(), Any::Refused, None, NOW))
            .unwrap();
    assert_eq!(changed, Changed::default());
    assert!(fixture.calls().is_empty());
    assert_eq!(std::fs::read_dir(fixture.directory.path()).unwrap().count(), 0);
}

#[test]
fn a_failure_at_any_call_puts_the_old_list_back() {
    for call in 1..=5 {
        let mut fixture = fixture();
        run(fixture.keeper.deny(&[net("198.18.0.99")], Action::Deny, &Note::default(), None, NOW))
            .unwrap();
        let before = fixture.keeper.list().clone();
        for change in 0..4 {
            fixture.fail_at(call);
            let prefixes = [net("198.18.0.7"), net("2001:db8::7")];
            let result = match change {
                0 => run(fixture.keeper.allow(
                    &prefixes,
                    Some(9_000),
                    &Note::default(),
                    Any::Refused,
                    None,
                    NOW,
                )),
                1 => run(fixture.keeper.deny(&prefixes, Action::Deny, &Note::default(), None, NOW)),
                2 => run(fixture.keeper.remove(&[net("198.18.0.0/24")], None, NOW)),
                _ => run(fixture.keeper.sync(Vec::new(), Any::Refused, None, NOW)),
            };
            // Not every change makes five calls; one that went through is taken back.
            if let Err(error) = result {
                let text = format!("{error:#}");
                assert!(text.starts_with("nothing was changed: "), "{text}");
                assert!(text.contains("on purpose"), "{text}");
                assert!(before.diff(fixture.keeper.list()).is_empty());
            } else {
                let entries: Vec<Entry> = before.entries().cloned().collect();
                fixture.world.borrow_mut().failing = None;
                run(fixture.keeper.sync(entries, Any::Refused, None, NOW)).unwrap();
            }
            fixture.agrees();
        }
    }
}

#[test]
fn an_overlay_that_cannot_be_written_stops_the_change_before_it_begins() {
    let mut fixture = fixture();
    fixture.keeper.file = Some(OverlayFile::new("/proc/no-such-directory/overlay.json".into()));
    assert!(
        run(fixture.keeper.deny(&[net("198.18.0.7")], Action::Deny, &Note::default(), None, NOW))
            .is_err()
    );
    assert!(fixture.calls().is_empty());
    assert!(fixture.allowed("198.18.0.7"));
}

#[test]
fn sync_makes_the_list_say_the_file_at_one_instant() {
    let mut fixture = fixture();
    let entries = vec![
        Entry::new(net("198.18.0.0/24"), Action::Allow, Origin::File),
        Entry::new(net("198.18.5.0/24"), Action::Deny, Origin::File),
    ];
    let (_, diff) = run(fixture.keeper.sync_diff(entries.clone(), Any::Refused)).unwrap();
    assert_eq!((diff.added.len(), diff.removed.len(), diff.changed.len()), (1, 1, 0));
    assert!(fixture.calls().is_empty());
    let changed = run(fixture.keeper.sync(entries, Any::Refused, None, NOW)).unwrap();
    assert_eq!(changed.diff, diff);
    assert_eq!(fixture.calls(), ["kernel replace", "user replace", "enforce"]);
    fixture.agrees();
    // What the configuration says keeps its origin.
    let kept = fixture.keeper.list().get(net("198.18.0.0/24")).unwrap();
    assert_eq!(kept.origin, Origin::Config);
}

#[test]
fn everybody_needs_a_second_word() {
    let mut fixture = fixture();
    let all = [net("0.0.0.0/0")];
    assert!(
        run(fixture.keeper.allow(&all, None, &Note::default(), Any::Refused, None, NOW)).is_err()
    );
    let entries = vec![Entry::new(all[0], Action::Allow, Origin::File)];
    assert!(run(fixture.keeper.sync(entries, Any::Refused, None, NOW)).is_err());
    assert!(fixture.calls().is_empty());
    run(fixture.keeper.allow(&all, None, &Note::default(), Any::Permitted, None, NOW)).unwrap();
    assert!(fixture.allowed("192.0.2.1"));
}

#[test]
fn removing_what_is_not_there_is_an_error_and_all_or_nothing() {
    let mut fixture = fixture();
    let error =
        run(fixture.keeper.remove(&[net("198.18.0.0/24"), net("198.18.1.0/24")], None, NOW));
    assert!(error.unwrap_err().to_string().contains("198.18.1.0/24 is not on the list"));
    assert!(fixture.calls().is_empty());
    assert!(fixture.allowed("198.18.0.1"));
}

#[test]
fn an_entry_past_its_deadline_goes_and_nothing_behind_it_comes_back() {
    let mut fixture = fixture();
    let prefixes = [net("198.18.0.0/24")];
    run(fixture.keeper.allow(&prefixes, Some(5_000), &Note::default(), Any::Refused, None, NOW))
        .unwrap();
    assert_eq!(run(fixture.keeper.expire(NOW)).unwrap(), Changed::default());
    let later = Now { realtime_ns: 1_010_000, boottime_ns: 11_000 };
    let changed = run(fixture.keeper.expire(later)).unwrap();
    assert_eq!(changed.diff.removed.len(), 1);
    assert!(!fixture.allowed("198.18.0.1"));
    fixture.agrees();
}

#[test]
fn a_reload_keeps_what_sessionctl_changed() {
    let mut fixture = fixture();
    run(fixture.keeper.deny(&[net("198.18.0.7")], Action::Deny, &Note::default(), None, NOW))
        .unwrap();
    run(fixture.keeper.remove(&[net("2001:db8::/32")], None, NOW)).unwrap();
    fixture.calls();
    let mut base = base();
    base.insert(Entry::new(net("198.18.3.0/24"), Action::Allow, Origin::File));
    let changed = run(fixture.keeper.reload(base, NOW)).unwrap();
    assert_eq!(changed.diff.added.len(), 1);
    assert_eq!(fixture.calls(), ["kernel replace", "user replace", "enforce"]);
    assert!(fixture.allowed("198.18.3.3"));
    assert!(!fixture.allowed("198.18.0.7") && !fixture.allowed("2001:db8::1"));
    fixture.agrees();
}

#[test]
fn a_large_list_is_changed_entry_by_entry_and_no_source_meets_a_third_verdict() {
    let mut fixture = fixture();
    let many = (0..10_000_u32).map(|n| {
        let address = std::net::Ipv4Addr::from_bits(0x0a00_0000 | n);
        Entry::new(IpNet::from(IpAddr::from(address)), Action::Allow, Origin::File)
    });
    let with = |more: &[(&str, Action)]| -> Vec<Entry> {
        let more =
            more.iter().map(|(prefix, action)| Entry::new(net(prefix), *action, Origin::File));
        many.clone().chain(more).collect()
    };
    let (allow, deny) = (Action::Allow, Action::Deny);
    let before = [
        ("198.18.0.0/25", allow),
        ("198.18.0.128/25", allow),
        ("198.18.1.0/24", allow),
        ("198.18.1.9", deny),
        ("198.18.2.0/24", deny),
        ("198.18.2.9", allow),
    ];
    let after = [
        ("198.18.0.0/24", allow),
        ("198.18.2.0/24", allow),
        ("198.18.3.0/24", allow),
        ("198.18.3.9", deny),
    ];
    run(fixture.keeper.sync(with(&before), Any::Refused, None, NOW)).unwrap();
    let old = fixture.keeper.list().clone();
    fixture.calls();
    run(fixture.keeper.sync(with(&after), Any::Refused, None, NOW)).unwrap();
    let calls = fixture.calls();
    assert!(!calls.contains(&"kernel replace".to_owned()), "{calls:?}");
    assert_eq!(calls[calls.len() - 2..], ["user change", "enforce"]);
    fixture.agrees();
    // The same again on a list of our own, looked at after each step.
    let new = fixture.keeper.list().clone();
    let steps = Steps { list: old.clone(), old, new: new.clone() };
    let mut keeper = Keeper::new(
        Allowlist::new(),
        Overlay::default(),
        None,
        steps,
        Side(Rc::clone(&fixture.world)),
    );
    let diff = keeper.kernel.old.diff(&new);
    let changed = diff.changed.into_iter().map(|(_, entry)| entry);
    let insert = diff.added.into_iter().chain(changed).collect();
    let remove = diff.removed.into_iter().map(|entry| entry.prefix).collect();
    let (insert, remove) = in_order(insert, remove);
    run(keeper.change_kernel(&insert, &remove, &Arc::new(new.clone()))).unwrap();
    assert!(keeper.kernel.list.diff(&new).is_empty());
}

/// A kernel that checks after every step that each source has its old or its new verdict.
struct Steps {
    list: Allowlist,
    old: Allowlist,
    new: Allowlist,
}

impl Steps {
    fn check(&self) {
        for third in 0..5_u8 {
            for last in [1, 9, 129, 200] {
                let source = IpAddr::from([198, 18, third, last]);
                let of = |list: &Allowlist| list.verdict(source, NOW.boottime_ns).allowed;
                let seen = of(&self.list);
                assert!(seen == of(&self.old) || seen == of(&self.new), "{source}");
            }
        }
    }
}

impl Kernel for Steps {
    fn insert(&mut self, entry: &Entry) -> Result<()> {
        self.list.insert(entry.clone());
        self.check();
        Ok(())
    }
    fn remove(&mut self, prefix: IpNet) -> Result<()> {
        self.list.remove(prefix);
        self.check();
        Ok(())
    }
    async fn replace(&mut self, list: &Arc<Allowlist>) -> Result<()> {
        self.list = Allowlist::clone(list);
        Ok(())
    }
}

/// A kernel with room for two entries, until it gets a whole list.
#[derive(Default)]
struct Small {
    list: Allowlist,
    room: Option<usize>,
}

impl Kernel for Small {
    fn insert(&mut self, entry: &Entry) -> Result<()> {
        if self.room.is_some_and(|room| self.list.len() >= room) {
            return Err(GuardError::Outgrown.into());
        }
        self.list.insert(entry.clone());
        Ok(())
    }
    fn remove(&mut self, prefix: IpNet) -> Result<()> {
        self.list.remove(prefix);
        Ok(())
    }
    async fn replace(&mut self, list: &Arc<Allowlist>) -> Result<()> {
        *self = Self { list: Allowlist::clone(list), room: None };
        Ok(())
    }
}

#[test]
fn a_kernel_that_has_no_room_for_one_more_gets_the_whole_list() {
    let world = Rc::new(RefCell::new(World::default()));
    let kernel = Small { room: Some(2), ..Small::default() };
    let (base, overlay) = (Allowlist::new(), Overlay::default());
    let mut keeper = Keeper::new(base, overlay, None, kernel, Side(world));
    for host in ["198.18.0.1", "198.18.0.2", "198.18.0.3", "198.18.0.4"] {
        let note = Note::default();
        run(keeper.allow(&[net(host)], None, &note, Any::Refused, None, NOW)).unwrap();
        assert!(keeper.list().diff(&keeper.kernel.list).is_empty(), "{host}");
    }
    assert_eq!(keeper.kernel.room, None);
}
