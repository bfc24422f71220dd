//! Everything in the catalogue of evasions, put on a wire: what reaches a host's sockets with the
//! guard, beside what reaches them without.
//!
//! The kernel itself is asked which forms it delivers, so that a form is not called harmless
//! because nobody knew that it arrives.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result, ensure};
use session_common::guard::ListWord;
use session_tests::attach::{Attachment, Mode};
use session_tests::evasions::{Ends, Form, forms4, forms6, sources4, sources6};
use session_tests::guard_program::{GuardProgram, Hook};
use session_tests::packet::{TCP, UDP};
use session_tests::wire::{Arrival, BEHIND, HOST, SOURCES, Wire};
use session_tests::{kernel, require_root};

const PORT: u16 = 11_211;
/// A port that is nobody's business.
const OTHER_PORT: u16 = 11_311;
const LIST: ListWord = ListWord::new(0, 1);
const ALLOWED: (Ipv4Addr, Ipv6Addr) = SOURCES[0];
const STRANGER: (Ipv4Addr, Ipv6Addr) = SOURCES[1];

/// Source ports of frames that tell that all before them were handled.
const FENCES: std::ops::Range<u16> = 60_000..60_004;

/// Where the guard can stand, and by which program.
const STANDS: [(Hook, Mode); 5] = [
    (Hook::NativeFrags, Mode::Native),
    (Hook::Native, Mode::Native),
    (Hook::NativeFrags, Mode::Generic),
    (Hook::Native, Mode::Generic),
    (Hook::Tcx, Mode::Tcx),
];

/// What one case is: the form's name, and who sends it where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Sender {
    Stranger,
    Forged,
    Allowed,
    /// A stranger, to a port that is not guarded.
    Elsewhere,
    /// A stranger, to the guarded port of a machine behind the host.
    Through,
}

#[derive(Debug)]
struct Case {
    name: &'static str,
    sender: Sender,
    arrival: Arrival,
    frames: Vec<Vec<u8>>,
}

/// Every form by every sender over TCP and UDP, each with a source port of its own.
fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut from = 20_000..FENCES.start;
    let (v4, v6) =
        ((STRANGER.0, ALLOWED.0, HOST.0, BEHIND.0), (STRANGER.1, ALLOWED.1, HOST.1, BEHIND.1));
    of_family(false, &forms4(), &sources4(), v4, &mut from, &mut cases);
    of_family(true, &forms6(), &sources6(), v6, &mut from, &mut cases);
    cases
}

fn of_family<A: Copy>(
    is_v6: bool,
    forms: &[Form<A>],
    sources: &[Form<A>],
    (stranger, allowed, host, behind): (A, A, A, A),
    from: &mut std::ops::Range<u16>,
    cases: &mut Vec<Case>,
) {
    let senders = [
        (Sender::Stranger, forms, stranger, host, PORT),
        (Sender::Forged, sources, stranger, host, PORT),
        (Sender::Allowed, forms, allowed, host, PORT),
        (Sender::Elsewhere, forms, stranger, host, OTHER_PORT),
        (Sender::Through, forms, stranger, behind, PORT),
    ];
    for (sender, forms, source, destination, to) in senders {
        for (form, protocol) in forms.iter().flat_map(|form| [(form, TCP), (form, UDP)]) {
            let from = from.next().expect("ports are left");
            let ends = Ends { source, destination, protocol, from, to };
            let frames = (form.build)(ends);
            cases.push(Case { name: form.name, sender, arrival: (is_v6, protocol, from), frames });
        }
    }
}

/// Plain frames of an allowed source, one a family and protocol, to a port of the host's or to
/// the machine behind it.
fn fences((v4, v6): (Ipv4Addr, Ipv6Addr), to: u16) -> (Vec<Arrival>, Vec<Vec<u8>>) {
    let (plain4, plain6) = (forms4()[0].build, forms6()[0].build);
    let mut fences = (Vec::new(), Vec::new());
    for (from, (is_v6, protocol)) in
        FENCES.zip([(false, TCP), (false, UDP), (true, TCP), (true, UDP)])
    {
        fences.0.push((is_v6, protocol, from));
        fences.1.extend(if is_v6 {
            plain6(Ends { source: ALLOWED.1, destination: v6, protocol, from, to })
        } else {
            plain4(Ends { source: ALLOWED.0, destination: v4, protocol, from, to })
        });
    }
    fences
}

/// Sends all cases and returns what reached each of the three ports.
fn run(wire: &Wire, cases: &[Case]) -> Result<BTreeMap<Sender, BTreeSet<Arrival>>> {
    let guarded = wire.listen(PORT)?;
    let other = wire.listen(OTHER_PORT)?;
    let behind = wire.listen_behind(PORT)?;
    let ends = [(&guarded, HOST, PORT), (&other, HOST, OTHER_PORT), (&behind, BEHIND, PORT)];
    let fences = ends.map(|(ears, host, port)| (ears, fences(host, port)));
    let frames = cases.iter().flat_map(|case| &case.frames);
    wire.send(frames.chain(fences.iter().flat_map(|(_, (_, frames))| frames)))?;
    let mut heard = Vec::new();
    for (ears, (awaited, _)) in &fences {
        heard.push(ears.heard(awaited)?);
    }
    let mut reached: BTreeMap<Sender, BTreeSet<Arrival>> = BTreeMap::new();
    for case in cases {
        let heard = match case.sender {
            Sender::Stranger | Sender::Forged | Sender::Allowed => &heard[0],
            Sender::Elsewhere => &heard[1],
            Sender::Through => &heard[2],
        };
        let reached = reached.entry(case.sender).or_default();
        reached.extend(heard.get(&case.arrival));
    }
    Ok(reached)
}

fn guard() -> Result<GuardProgram> {
    GuardProgram::letting_in(LIST, ALLOWED, HOST, PORT)
}

/// Names of the cases that one side has and the other has not.
fn missing<'c>(
    cases: &'c [Case],
    sender: Sender,
    from: &BTreeSet<Arrival>,
    in_: &BTreeSet<Arrival>,
) -> Vec<(&'c str, Arrival)> {
    let of = cases.iter().filter(|case| case.sender == sender);
    of.filter(|case| from.contains(&case.arrival) && !in_.contains(&case.arrival))
        .map(|case| (case.name, case.arrival))
        .collect()
}

/// Forms whose port the guard does not find. They might be for the guarded port, so that a stranger's
/// are dropped whatever port they are for, if the host is where they go.
const WITHOUT_A_PORT: [&str; 3] =
    ["nine destination options", "thirty destination options", "first fragment without a port"];

/// Forms whose source is not found either: more tags than the guard walks.
const WITHOUT_A_SOURCE: [&str; 2] = ["five priority tags", "eight priority tags"];

/// How many forms the catalogue has.
const FORMS: usize = 182;

#[test]
fn no_form_of_a_strangers_reaches_a_socket_and_no_other_traffic_is_harmed() -> Result<()> {
    require_root!();
    let wire = Wire::new()?;
    let cases = cases();
    let open = run(&wire, &cases)?;
    let counts: Vec<_> = open
        .iter()
        .map(|(sender, reached)| {
            let all = cases.iter().filter(|case| case.sender == *sender).count();
            format!("{sender:?} {} of {all}", reached.len())
        })
        .collect();
    let forms = forms4().len() + forms6().len();
    println!("{forms} forms; without a guard: {}", counts.join(", "));
    assert_eq!(forms, FORMS);
    // What this shows stands and falls with what the kernel delivers to begin with.
    ensure!(open[&Sender::Stranger].len() >= 150, "{counts:?}");
    for (hook, mode) in STANDS {
        let mut guard = guard()?;
        if !guard.hooks().contains(&hook) || (mode == Mode::Tcx && kernel::is_before(6, 6)) {
            println!("{hook:?} {mode:?}: not on this kernel");
            continue;
        }
        let attached: Result<Attachment> = wire.host.run(|| guard.attach(hook, "eth0", mode));
        let _attached = attached.with_context(|| format!("{hook:?} {mode:?}"))?;
        let guarded = run(&wire, &cases).with_context(|| format!("{hook:?} {mode:?}"))?;
        for sender in [Sender::Stranger, Sender::Forged] {
            let none = BTreeSet::new();
            let reached = missing(&cases, sender, &guarded[&sender], &none);
            ensure!(reached.is_empty(), "{hook:?} {mode:?}: {sender:?} by {reached:?}");
        }
        for sender in [Sender::Allowed, Sender::Elsewhere, Sender::Through] {
            let mut harmed = missing(&cases, sender, &open[&sender], &guarded[&sender]);
            harmed.retain(|(name, _)| {
                let refused = sender == Sender::Elsewhere && WITHOUT_A_PORT.contains(name);
                !refused && !WITHOUT_A_SOURCE.contains(name)
            });
            ensure!(harmed.is_empty(), "{hook:?} {mode:?}: {sender:?} lost {harmed:?}");
        }
        for address in [IpAddr::from(HOST.0), HOST.1.into()] {
            ensure!(wire.echoes(address)?, "{hook:?} {mode:?}: {address} does not answer");
        }
    }
    Ok(())
}
