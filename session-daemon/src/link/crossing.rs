//! Connections on their way from one serving process to the next, over a socket pair of their own:
//! the parent, which never reads a client's byte, only makes the pair.
#![forbid(unsafe_code)]

use std::os::unix::net::UnixStream;

use crate::link::LinkError;
use crate::link::frame::{receive, send};
use crate::server::handover::{Parked, Told, messages};

/// Sends all connections; blocks while the other process is slower.
///
/// # Errors
/// The other process is gone. Connections that were not sent stay here.
pub fn send_parked(stream: &UnixStream, parked: &[Parked]) -> Result<(), LinkError> {
    for (told, sockets) in messages(parked) {
        send(stream, &told, &sockets)?;
    }
    Ok(())
}

/// Receives connections until the other end is closed, or breaks.
#[must_use]
pub fn receive_parked(stream: &UnixStream) -> Vec<Parked> {
    let mut parked = Vec::new();
    loop {
        match receive::<Vec<Told>>(stream) {
            Ok(None) => return parked,
            Ok(Some((told, sockets))) => {
                let pairs = sockets.into_iter().zip(told);
                parked.extend(pairs.map(|(fd, told)| Parked { fd, told }));
            }
            Err(error) => {
                // A process that was killed in the middle: the rest is closed with it.
                log::warn!("taking connections over: {error}");
                return parked;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::OwnedFd;

    use super::*;
    use crate::server::talk::Talk;

    #[test]
    fn connections_cross_with_what_was_said_and_a_cut_loses_the_rest_only() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let receiver = std::thread::spawn(move || receive_parked(&theirs));
        let pairs: Vec<_> = (0..200).map(|_| UnixStream::pair().unwrap()).collect();
        let (clients, served): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        let talk = |idx: usize| Talk {
            binary: [None, Some(false), Some(true)][idx % 3],
            known: idx.is_multiple_of(2),
            unread: vec![b'u'; idx * 400],
            unsent: vec![b's'; idx],
        };
        let parked: Vec<Parked> = served
            .into_iter()
            .enumerate()
            .map(|(idx, socket)| {
                let told = Told { listener: format!("tcp:{idx}"), talk: talk(idx) };
                Parked { fd: OwnedFd::from(socket), told }
            })
            .collect();
        send_parked(&ours, &parked).unwrap();
        (&ours).write_all(&[9, 0]).unwrap();
        drop((ours, parked));
        let received = receiver.join().unwrap();
        assert_eq!(received.len(), 200);
        for (idx, (one, mut client)) in received.into_iter().zip(clients).enumerate() {
            assert_eq!(one.told.talk, talk(idx));
            assert_eq!(one.told.listener, format!("tcp:{idx}"));
            UnixStream::from(one.fd).write_all(b"x").unwrap();
            let mut all = Vec::new();
            client.read_to_end(&mut all).unwrap();
            assert_eq!(all, b"x", "it is the other end of this one");
        }
    }
}
