//! Which epoll instance watches a descriptor, when nobody says so. It owns the search; it changes
//! no interest of any instance.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// Descriptors above the one that is watched among which the instance may be.
const ABOVE_MAX: RawFd = 64;

/// The epoll instance of this process that watches `fd`, as a descriptor of its own. The nearest
/// numbers below are tried first: whoever watches a new descriptor was mostly made just before it.
pub fn epoll_that_watches(fd: &OwnedFd) -> Option<OwnedFd> {
    let own = fd.as_raw_fd();
    let found = (0..own).rev().chain(own + 1..own + ABOVE_MAX).find(|it| watches(*it, own))?;
    // SAFETY: the number was open a moment ago and is an instance that watches a descriptor of the
    // caller, who does not close that instance meanwhile.
    let found = unsafe { BorrowedFd::borrow_raw(found) };
    found.try_clone_to_owned().ok()
}

/// Whether `epoll` is an instance that watches `fd`: adding it again is refused then. Another
/// instance takes it, without any event, and gives it back.
fn watches(epoll: RawFd, fd: RawFd) -> bool {
    let change = |operation| {
        let mut nothing = libc::epoll_event { events: 0, u64: u64::MAX };
        // SAFETY: `nothing` outlives the call; numbers that are no epoll instance are refused.
        let status = unsafe { libc::epoll_ctl(epoll, operation, fd, &raw mut nothing) };
        if status == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    match change(libc::EPOLL_CTL_ADD) {
        Ok(()) => {
            // It is there: this cannot fail.
            let _ = change(libc::EPOLL_CTL_DEL);
            false
        }
        Err(error) => error.raw_os_error() == Some(libc::EEXIST),
    }
}

#[cfg(test)]
mod tests {
    use super::epoll_that_watches;
    use rustix::event::epoll::{CreateFlags, EventData, EventFlags, add, create, wait};
    use rustix::event::{EventfdFlags, Timespec, eventfd};

    #[test]
    fn the_instance_is_found_among_others_and_none_is_changed() {
        let descriptor = || eventfd(1, EventfdFlags::CLOEXEC).unwrap();
        let instance = || create(CreateFlags::CLOEXEC).unwrap();
        let (right, wrong) = (instance(), instance());
        let (watched, unwatched) = (descriptor(), descriptor());
        let behind = instance();
        add(&right, &watched, EventData::new_u64(7), EventFlags::IN).unwrap();
        for other in [&wrong, &behind] {
            add(other, &unwatched, EventData::new_u64(8), EventFlags::empty()).unwrap();
        }
        let found = epoll_that_watches(&watched).unwrap();
        let events = |epoll| {
            let mut events = Vec::with_capacity(8);
            let none = Timespec { tv_sec: 0, tv_nsec: 0 };
            wait(epoll, rustix::buffer::spare_capacity(&mut events), Some(&none)).unwrap();
            events.iter().map(|event| event.data.u64()).collect::<Vec<_>>()
        };
        assert_eq!(events(&found), [7]);
        assert_eq!((events(&wrong), events(&behind)), (vec![], vec![]));
        assert!(epoll_that_watches(&descriptor()).is_none());
    }
}
