//! The bearer token of a client, reloaded when its file changes.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use tonic::metadata::{Ascii, MetadataValue};

use super::PeerClientShared;
use crate::error::{Error, ErrorKind, Result};

type BearerHeader = MetadataValue<Ascii>;

/// The token, if the client has one.
#[derive(Debug, Default)]
pub(super) struct Credentials {
    file: Option<PathBuf>,
    token: ArcSwapOption<BearerHeader>,
}

impl Credentials {
    pub(super) fn new(file: Option<PathBuf>) -> Self {
        Self {
            file,
            token: ArcSwapOption::empty(),
        }
    }

    /// The request with the token, if there is one.
    pub(super) fn on<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        if let Some(token) = self.token.load().as_deref() {
            request
                .metadata_mut()
                .insert("authorization", token.clone());
        }
        request
    }

    /// Reads the token for the first time.
    pub(super) async fn load(&self) -> Result<()> {
        let Some(file) = self.file.clone() else {
            return Ok(());
        };
        let token = tokio::task::spawn_blocking(move || read(&file)).await;
        let token =
            token.map_err(|_| Error::new(ErrorKind::Internal, "reading a file ended"))??;
        self.token.store(Some(Arc::new(token)));
        Ok(())
    }

    pub(super) fn follows(&self) -> bool {
        self.file.is_some()
    }
}

/// Reloads the token when its file changes. Owned by the client, which aborts it.
pub(super) async fn follow(shared: Weak<PeerClientShared>) {
    const POLL_INTERVAL: Duration = Duration::from_millis(500);
    let mut seen = None;
    loop {
        let Some(file) = shared
            .upgrade()
            .and_then(|shared| shared.credentials.file.clone())
        else {
            return;
        };
        let look = move || {
            let written = modified(&file);
            (written != seen).then(|| (written, read(&file)))
        };
        if let Ok(Some((written, token))) = tokio::task::spawn_blocking(look).await {
            match (token, shared.upgrade()) {
                (Ok(token), Some(shared)) => {
                    shared.credentials.token.store(Some(Arc::new(token)));
                    seen = written;
                }
                (Err(error), _) => {
                    tracing::warn!(%error, "a changed token is invalid; the old one is kept");
                }
                (Ok(_), None) => return,
            }
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

fn modified(file: &Path) -> Option<(SystemTime, u64)> {
    let found = std::fs::metadata(file).ok()?;
    Some((found.modified().ok()?, found.len()))
}

fn read(file: &Path) -> Result<BearerHeader> {
    let refused = |why: &str| {
        let text = format!("token_file {}: {why}", file.display());
        Error::new(ErrorKind::InvalidParameter, text).with("parameter", "token_file")
    };
    let text = std::fs::read_to_string(file)
        .map_err(|error| refused("it cannot be read").caused_by(error))?;
    let token = text.trim();
    if token.is_empty() || token.contains(char::is_whitespace) {
        return Err(refused("it must hold one token and nothing else"));
    }
    let mut value: BearerHeader = format!("Bearer {token}")
        .parse()
        .map_err(|_| refused("a token is made of visible ASCII characters"))?;
    // Keeps it out of the transport's logs.
    value.set_sensitive(true);
    Ok(value)
}
