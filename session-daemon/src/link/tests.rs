//! Unit tests over real socket pairs.

use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};

use super::*;
use crate::allowlist::{Action, Origin};

fn pair(
    serve: impl FnOnce(ChildEnd) -> Vec<Request> + Send + 'static,
) -> (UnixStream, JoinHandle<Vec<Request>>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (ours, thread::spawn(move || serve(ChildEnd::new(theirs))))
}

fn run<T>(test: impl AsyncFnOnce() -> T) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test())
}

fn entry(n: u32) -> Entry {
    let host = std::net::Ipv4Addr::from(0xc612_0000 | n);
    Entry::new(IpNet::from(std::net::IpAddr::from(host)), Action::Allow, Origin::Control)
}

#[test]
fn sockets_arrive_with_their_request() {
    let (ours, child) = pair(|mut end| {
        let (request, sockets) = end.receive().unwrap().unwrap();
        assert_eq!(sockets.len(), 100);
        let first = TcpListener::from(sockets.into_iter().next().unwrap());
        assert_ne!(first.local_addr().unwrap().port(), 0);
        end.answer(&Reply::Done).unwrap();
        vec![request]
    });
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let kinds = run(async || {
        let mut end = ParentEnd::new(ours).unwrap();
        let sockets = vec![(ListenerKind::Tcp(None), listener.as_fd()); 100];
        end.listeners(&sockets).await.unwrap();
        vec![ListenerKind::Tcp(None); 100]
    });
    assert_eq!(child.join().unwrap(), [Request::Listeners(kinds)]);
}

#[test]
fn a_long_list_arrives_in_parts() {
    let (ours, child) = pair(|mut end| {
        let mut requests = Vec::new();
        while let Some((request, _)) = end.receive().unwrap() {
            requests.push(request);
            end.answer(&Reply::Done).unwrap();
        }
        requests
    });
    let count = ENTRIES_PER_PART_MAX + 7;
    let entries: Vec<Entry> = (0..u32::try_from(count).unwrap()).map(entry).collect();
    run(async || ParentEnd::new(ours).unwrap().replace(entries.iter()).await.unwrap());
    let requests = child.join().unwrap();
    assert_eq!(requests.len(), 3);
    let Request::ListPart(part) = &requests[1] else { panic!("{:?}", requests[1]) };
    assert_eq!(part.as_slice(), &entries[ENTRIES_PER_PART_MAX..]);
    assert_eq!(requests[2], Request::ListReplace);
}

#[test]
fn a_refusal_is_an_error_and_the_pair_stays_usable() {
    let (ours, child) = pair(|mut end| {
        let (first, _) = end.receive().unwrap().unwrap();
        end.answer(&Reply::Failed("no memory".to_owned())).unwrap();
        let (second, _) = end.receive().unwrap().unwrap();
        end.answer(&Reply::Enforced(3)).unwrap();
        vec![first, second]
    });
    run(async || {
        let mut end = ParentEnd::new(ours).unwrap();
        let refused = end.done(&Request::Serve).await.unwrap_err();
        assert_eq!(refused.to_string(), "no memory");
        assert_eq!(end.enforce().await.unwrap(), 3);
    });
    assert_eq!(child.join().unwrap(), [Request::Serve, Request::Enforce]);
}

#[test]
fn a_child_that_goes_is_an_error_at_once() {
    let (ours, child) = pair(|mut end| {
        let (request, _) = end.receive().unwrap().unwrap();
        vec![request]
    });
    run(async || {
        let mut end = ParentEnd::new(ours).unwrap();
        assert!(matches!(end.enforce().await, Err(LinkError::Closed)));
        // The frames are out of step: nothing is sent any more.
        assert!(matches!(end.enforce().await, Err(LinkError::Timeout)));
    });
    child.join().unwrap();
}

#[test]
fn a_length_out_of_bounds_is_refused_before_it_is_allocated() {
    use std::io::Write;
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.write_all(&u32::MAX.to_le_bytes()).unwrap();
    assert!(matches!(ChildEnd::new(theirs).receive(), Err(LinkError::TooLong(_))));
}
