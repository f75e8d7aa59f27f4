//! Batches of many users: they cross between Python and the core in pieces, so that neither way keeps
//! an event loop, or the GIL, for long.

use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use tokio::runtime::Handle;

use super::argument;
use super::error::{OrRaise, raise};
use super::runtime::{self, Owned};
use crate::clock::{Clock, Tick};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{PodIndex, UID_MAX, Uid};

/// The most users that cross at once.
pub(super) const PIECE: usize = 2_048;

/// A value that takes long to drop, because it is large: another thread does it.
struct DroppedElsewhere<T: Send + 'static> {
    value: Option<T>,
    runtime: Owned<Handle>,
}

impl<T: Send + 'static> DroppedElsewhere<T> {
    fn new(py: Python<'_>, value: T) -> PyResult<Self> {
        Ok(Self {
            value: Some(value),
            runtime: Owned::new(runtime::handle(py)?),
        })
    }
}

impl<T: Send + 'static> Drop for DroppedElsewhere<T> {
    fn drop(&mut self) {
        if let (Some(value), Some(runtime)) = (self.value.take(), self.runtime.ours()) {
            // It ends by itself.
            drop(runtime.spawn_blocking(move || drop(value)));
        }
    }
}

/// The users of a batch, while they arrive in pieces.
#[pyclass(frozen, module = "podlink._podlink")]
pub(super) struct UidBatch {
    /// When the program made the call: its deadline counts from here.
    pub(super) began: Tick,
    users: Mutex<DroppedElsewhere<ArrivedUsers>>,
}

/// The most users that room is made for before they have arrived.
const EXPECTED_MAX: usize = 1 << 20;

/// One large table would take long to grow.
const TABLES: usize = 256;

struct ArrivedUsers {
    uids: Vec<Uid>,
    seen: Vec<HashSet<SeenUid, BuildHasherDefault<KnownHash>>>,
    hash: RandomState,
}

impl ArrivedUsers {
    fn new(expected: usize) -> Self {
        Self {
            uids: Vec::with_capacity(expected),
            seen: std::iter::repeat_with(HashSet::default)
                .take(TABLES)
                .collect(),
            hash: RandomState::new(),
        }
    }

    fn add(&mut self, text: &str) -> Result<()> {
        let uid = Uid::new(text)?;
        let hash = self.hash.hash_one(&uid);
        let seen = SeenUid {
            hash,
            uid: uid.clone(),
        };
        // Not the bits by which a table places its entries.
        let table = usize::from(hash.to_le_bytes()[4]) % TABLES;
        let table = self.seen.get_mut(table);
        if table.is_none_or(|table| table.insert(seen)) {
            self.uids.push(uid);
        }
        Ok(())
    }
}

/// Many texts in one.
#[derive(Default)]
struct Texts {
    all: String,
    ends: Vec<usize>,
}

impl Texts {
    fn push(&mut self, text: &str) {
        self.all.push_str(text);
        self.ends.push(self.all.len());
    }

    fn iter(&self) -> impl Iterator<Item = &str> {
        let begins = std::iter::once(0).chain(self.ends.iter().copied());
        let places = begins.zip(&self.ends);
        places.map(|(begin, end)| self.all.get(begin..*end).unwrap_or_default())
    }
}

/// A user with its hash: a table of a million that grows must not hash each of them again.
#[derive(PartialEq, Eq)]
struct SeenUid {
    hash: u64,
    uid: Uid,
}

impl Hash for SeenUid {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// Takes a hash as it is.
#[derive(Default)]
struct KnownHash(u64);

impl Hasher for KnownHash {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

#[pymethods]
impl UidBatch {
    /// A batch without users, in which so many are expected: a table that grows is copied.
    #[new]
    fn new(py: Python<'_>, expected: usize) -> PyResult<Self> {
        // A length is only what an iterable says of itself.
        let users = DroppedElsewhere::new(py, ArrivedUsers::new(expected.min(EXPECTED_MAX)))?;
        Ok(Self {
            began: Clock::System.now(),
            users: Mutex::new(users),
        })
    }

    /// Adds users; one that is there already is left out.
    fn add(&self, piece: &Bound<'_, PyList>) -> PyResult<()> {
        let py = piece.py();
        let mut texts = Texts::default();
        for uid in piece.iter() {
            let text = argument::text("uid", &uid)?;
            if text.len() > UID_MAX {
                Uid::new(text).or_raise(py)?; // before it is copied
            }
            texts.push(text);
        }
        let (users, runtime) = {
            let mut users = self.users();
            (users.value.take(), users.runtime.get(py)?.clone())
        };
        let mut users = users.unwrap_or_else(|| ArrivedUsers::new(0));
        let (done, answer) = mpsc::channel();
        // On the threads that drop them, too: the allocator gives a thread of its own back what
        // another one has dropped, a million users at once.
        drop(runtime.spawn_blocking(move || {
            let added = texts.iter().try_for_each(|text| users.add(text));
            let _gone = done.send((users, added));
        }));
        let (users, added) = py.detach(move || answer.recv()).map_err(|_| {
            let text = "the thread that reads users ended";
            raise(py, &Error::new(ErrorKind::Internal, text))
        })?;
        self.users().value = Some(users);
        added.or_raise(py)
    }

    fn __len__(&self) -> usize {
        let users = self.users();
        users.value.as_ref().map_or(0, |users| users.uids.len())
    }

    /// For how many seconds the call has been under way.
    fn age(&self) -> f64 {
        Clock::System.now().since(self.began).as_secs_f64()
    }
}

impl UidBatch {
    fn users(&self) -> MutexGuard<'_, DroppedElsewhere<ArrivedUsers>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The users; the batch is empty afterwards.
    pub(super) fn take(&self) -> Arc<[Uid]> {
        let mut users = self.users();
        let uids = users
            .value
            .as_mut()
            .map(|all| std::mem::take(&mut all.uids));
        uids.unwrap_or_default().into()
    }
}

type PodsOfUsers = (Arc<[Uid]>, Vec<Option<PodIndex>>);

/// The pods of many users, which Python takes in pieces.
#[pyclass(frozen, module = "podlink._podlink")]
pub(super) struct UsersByPod {
    users: DroppedElsewhere<PodsOfUsers>,
    taken: AtomicUsize,
}

impl UsersByPod {
    pub(super) fn new(
        py: Python<'_>,
        uids: Arc<[Uid]>,
        pods: Vec<Option<PodIndex>>,
    ) -> PyResult<Self> {
        Ok(Self {
            users: DroppedElsewhere::new(py, (uids, pods))?,
            taken: AtomicUsize::new(0),
        })
    }
}

#[pymethods]
impl UsersByPod {
    /// The next users by pod, or None after the last ones.
    fn take<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        let Some((uids, pods)) = &self.users.value else {
            return Ok(None);
        };
        let from = self.taken.fetch_add(PIECE, Ordering::Relaxed);
        if from >= uids.len() {
            return Ok(None);
        }
        let piece = from..uids.len().min(from + PIECE);
        let (uids, pods) = (uids.get(piece.clone()), pods.get(piece));
        users_by_pod(py, uids.unwrap_or_default(), pods.unwrap_or_default()).map(Some)
    }
}

/// Users by pod, in the order in which they were asked for; users without a link are left out.
pub(super) fn users_by_pod<'py>(
    py: Python<'py>,
    uids: &[Uid],
    pods: &[Option<PodIndex>],
) -> PyResult<Bound<'py, PyDict>> {
    let mut users: BTreeMap<PodIndex, Vec<&str>> = BTreeMap::new();
    for (uid, pod) in uids.iter().zip(pods) {
        if let Some(pod) = pod {
            users.entry(*pod).or_default().push(uid.as_str());
        }
    }
    let table = PyDict::new(py);
    for (pod, uids) in users {
        table.set_item(pod.get(), PyList::new(py, uids)?)?;
    }
    Ok(table)
}
