//! The files that a server reloads when they change: certificates, keys, tokens.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::ServerConfig;

use super::access::{Gate, Tokens};
use super::tls;
use crate::config::{PeerServerConfig, ServerTls};
use crate::error::Result;

/// How often the files are checked for changes.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// The paths of the files.
#[derive(Debug, Clone)]
pub(super) struct Files {
    tls: Option<ServerTls>,
    tokens: Option<PathBuf>,
}

/// The content of the files.
pub(super) struct Loaded {
    pub(super) tls: Option<ServerConfig>,
    pub(super) tokens: Option<Tokens>,
    pub(super) signature: Signature,
}

/// Each file's modification time and length; `None`: unreadable.
type Signature = Vec<Option<(SystemTime, u64)>>;

impl Files {
    pub(super) fn of(config: &PeerServerConfig) -> Self {
        Self {
            tls: config.tls.clone(),
            tokens: config.tokens_file.clone(),
        }
    }

    /// Reads all of them. It blocks on the file system.
    pub(super) fn load(&self) -> Result<Loaded> {
        // Before the files are read: a change during the read causes another reload.
        let signature = self.signature();
        Ok(Loaded {
            tls: self.tls.as_ref().map(tls::server).transpose()?,
            tokens: self.tokens.as_deref().map(Tokens::read).transpose()?,
            signature,
        })
    }

    fn signature(&self) -> Signature {
        let tls = self.tls.iter().flat_map(|tls| {
            [
                Some(&tls.cert_file),
                Some(&tls.key_file),
                tls.client_ca_file.as_ref(),
            ]
        });
        let paths = tls.flatten().chain(self.tokens.as_ref());
        let look = |path: &PathBuf| {
            let found = std::fs::metadata(path).ok()?;
            Some((found.modified().ok()?, found.len()))
        };
        paths.map(look).collect()
    }

    /// Reloads the files when they change. Invalid files, as in the middle of a rotation, change
    /// nothing and are read again.
    pub(super) async fn follow(
        self,
        tls: Option<Arc<ArcSwap<ServerConfig>>>,
        gate: Arc<Gate>,
        mut seen: Signature,
    ) {
        if seen.is_empty() {
            return;
        }
        let mut warned = None;
        loop {
            tokio::time::sleep(POLL_INTERVAL).await;
            let (files, known) = (self.clone(), seen.clone());
            let look = move || (files.signature() != known).then(|| files.load());
            match tokio::task::spawn_blocking(look).await {
                Ok(Some(Ok(loaded))) => {
                    if let (Some(current), Some(tls)) = (&tls, loaded.tls) {
                        current.store(Arc::new(tls));
                    }
                    if let Some(tokens) = loaded.tokens {
                        gate.replace(tokens);
                    }
                    (seen, warned) = (loaded.signature, None);
                    tracing::info!("the gRPC server's files have changed and were reloaded");
                }
                Ok(Some(Err(error))) => {
                    let text = error.to_string();
                    if warned.as_ref() != Some(&text) {
                        tracing::warn!(%error, "a changed file is invalid; the old one is kept");
                        warned = Some(text);
                    }
                }
                Ok(None) | Err(_) => {}
            }
        }
    }
}
