//! Every byte script against the connection's state machine, with the bytes cut at every place:
//! how the network cuts them must not show in the replies.
#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use session_tests::conversation::Conversation;
use session_tests::frame::CAS_MARK;
use session_tests::script::{self, Case, End, Side};

/// Cases up to this length are cut at every byte, longer ones near their ends and here and there.
const EVERY_BYTE_LEN: usize = 400;

/// Cuts of a longer case.
const SAMPLED_CUTS: usize = 40;

fn check(case: &Case, pieces: &[&[u8]]) -> Result<()> {
    let (replies, closed) = Conversation::new()?.feed(pieces);
    let context = || format!("{}, cut in {} pieces", case.name, pieces.len());
    script::compare(case, &replies).with_context(context)?;
    anyhow::ensure!(
        closed == (case.end(Side::Ours) == End::Closed),
        "{}: closed: {closed}",
        case.name
    );
    Ok(())
}

/// What the case sends in all; none when a reply has to be known first.
fn sent(case: &Case) -> Option<Vec<u8>> {
    let all: Vec<u8> = case.exchanges.iter().flat_map(|one| one.send.clone()).collect();
    let waits = all.windows(6).any(|window| window == b"{rest}")
        || all.windows(8).any(|window| window == CAS_MARK)
        || case.name.ends_with("(live)");
    (!waits).then_some(all)
}

#[test]
fn cuts_do_not_show() -> Result<()> {
    let mut played = 0;
    for case in script::all()? {
        let Some(all) = sent(&case) else { continue };
        check(&case, &[&all])?;
        let step = if all.len() <= EVERY_BYTE_LEN { 1 } else { all.len() / SAMPLED_CUTS };
        for at in (1..all.len()).step_by(step) {
            let (one, two) = all.split_at(at);
            check(&case, &[one, two]).with_context(|| format!("cut at {at}"))?;
        }
        let sizes: &[usize] =
            if all.len() <= EVERY_BYTE_LEN { &[1, 2, 3] } else { &[1448, 2048, 4096] };
        for size in sizes {
            check(&case, &all.chunks(*size).collect::<Vec<_>>())?;
        }
        played += 1;
    }
    assert!(played > 80, "only {played} cases can be cut");
    Ok(())
}
