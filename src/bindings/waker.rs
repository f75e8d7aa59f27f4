//! What wakes a Python event loop or thread: a descriptor that becomes readable.
//!
//! On Linux it is an `eventfd`: one descriptor, and no message or buffer for each wake-up.
//! Elsewhere it is a socket pair.

use std::os::fd::{AsRawFd, RawFd};

#[cfg(target_os = "linux")]
use self::eventfd::EventFd as WakeMechanism;
#[cfg(not(target_os = "linux"))]
use self::sockets::SocketPair as WakeMechanism;

/// Woken by the thread that queues a result, cleared by the reader that drains the queue.
#[derive(Debug)]
pub(super) struct Waker(WakeMechanism);

impl Waker {
    pub(super) fn new() -> std::io::Result<Self> {
        WakeMechanism::new().map(Self)
    }

    /// Wakes the reader. Never blocks, and ignores failures: a full descriptor is readable already,
    /// and a descriptor without a reader is no error.
    pub(super) fn wake(&self) {
        self.0.wake();
    }

    /// Clears all wake-ups so far.
    pub(super) fn clear(&self) {
        self.0.clear();
    }

    /// The descriptor that is readable from a wake-up until it is cleared.
    pub(super) fn descriptor(&self) -> RawFd {
        self.0.readable().as_raw_fd()
    }
}

#[cfg(target_os = "linux")]
mod eventfd {
    use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

    use rustix::event::EventfdFlags;

    #[derive(Debug)]
    pub(super) struct EventFd(OwnedFd);

    impl EventFd {
        pub(super) fn new() -> std::io::Result<Self> {
            let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
            Ok(Self(rustix::event::eventfd(0, flags)?))
        }

        pub(super) fn wake(&self) {
            let _full = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
        }

        pub(super) fn clear(&self) {
            let mut wake_ups = [0; 8];
            let _empty = rustix::io::read(&self.0, &mut wake_ups);
        }

        pub(super) fn readable(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
    }
}

#[cfg_attr(
    target_os = "linux",
    allow(
        dead_code,
        reason = "compiled where it is not used, so that it does not rot"
    )
)]
mod sockets {
    use std::io::{Read, Write};
    use std::os::fd::{AsFd, BorrowedFd};
    use std::os::unix::net::UnixStream;

    #[derive(Debug)]
    pub(super) struct SocketPair {
        sender: UnixStream,
        receiver: UnixStream,
    }

    impl SocketPair {
        pub(super) fn new() -> std::io::Result<Self> {
            let (sender, receiver) = UnixStream::pair()?;
            sender.set_nonblocking(true)?;
            receiver.set_nonblocking(true)?;
            Ok(Self { sender, receiver })
        }

        pub(super) fn wake(&self) {
            let _full = (&self.sender).write(&[1]);
        }

        pub(super) fn clear(&self) {
            let mut bytes = [0; 64];
            while matches!((&self.receiver).read(&mut bytes), Ok(count) if count == bytes.len()) {}
        }

        pub(super) fn readable(&self) -> BorrowedFd<'_> {
            self.receiver.as_fd()
        }
    }
}
