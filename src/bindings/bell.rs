//! What wakes an event loop or a thread of Python's: a descriptor that becomes readable.
//!
//! On Linux it is an `eventfd`: one descriptor, and neither a message nor its buffer for each ring.
//! Elsewhere it is a socket pair.

use std::os::fd::{AsRawFd, RawFd};

#[cfg(target_os = "linux")]
use self::eventfd::Way;
#[cfg(not(target_os = "linux"))]
use self::sockets::Way;

/// Rung by whoever has put something somewhere, heard by whoever takes it from there.
#[derive(Debug)]
pub(super) struct Bell(Way);

impl Bell {
    pub(super) fn new() -> std::io::Result<Self> {
        Way::new().map(Self)
    }

    /// Wakes whoever listens. It never waits, and there is nothing to do about a failure: a bell
    /// that cannot take another ring is being heard anyway, and one that nobody hears is no error.
    pub(super) fn ring(&self) {
        self.0.ring();
    }

    /// Takes note of all rings so far.
    pub(super) fn hear(&self) {
        self.0.hear();
    }

    /// The descriptor that is readable from a ring until it is heard.
    pub(super) fn descriptor(&self) -> RawFd {
        self.0.ear().as_raw_fd()
    }
}

#[cfg(target_os = "linux")]
mod eventfd {
    use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

    use rustix::event::EventfdFlags;

    #[derive(Debug)]
    pub(super) struct Way(OwnedFd);

    impl Way {
        pub(super) fn new() -> std::io::Result<Self> {
            let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
            Ok(Self(rustix::event::eventfd(0, flags)?))
        }

        pub(super) fn ring(&self) {
            let _full = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
        }

        pub(super) fn hear(&self) {
            let mut rings = [0; 8];
            let _silent = rustix::io::read(&self.0, &mut rings);
        }

        pub(super) fn ear(&self) -> BorrowedFd<'_> {
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
    pub(super) struct Way {
        bell: UnixStream,
        ear: UnixStream,
    }

    impl Way {
        pub(super) fn new() -> std::io::Result<Self> {
            let (bell, ear) = UnixStream::pair()?;
            bell.set_nonblocking(true)?;
            ear.set_nonblocking(true)?;
            Ok(Self { bell, ear })
        }

        pub(super) fn ring(&self) {
            let _full = (&self.bell).write(&[1]);
        }

        pub(super) fn hear(&self) {
            let mut bytes = [0; 64];
            while matches!((&self.ear).read(&mut bytes), Ok(count) if count == bytes.len()) {}
        }

        pub(super) fn ear(&self) -> BorrowedFd<'_> {
            self.ear.as_fd()
        }
    }
}
