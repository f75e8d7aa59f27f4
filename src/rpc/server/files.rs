//! The files that a server reads again when they change: certificates, keys, tokens.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::ServerConfig;

use super::access::{Gate, Tokens};
use super::tls;
use crate::config::{PeerServerConfig, ServerTls};
use crate::error::Result;

/// How soon a changed file counts.
const EVERY: Duration = Duration::from_millis(500);

/// Which files there are.
#[derive(Debug, Clone)]
pub(super) struct Files {
    tls: Option<ServerTls>,
    tokens: Option<PathBuf>,
}

/// What the files hold.
pub(super) struct Loaded {
    pub(super) tls: Option<ServerConfig>,
    pub(super) tokens: Option<Tokens>,
    pub(super) signature: Signature,
}

/// When each file was written last, and how long it is; `None`: it cannot be looked at.
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
        // Looked at first: what is written while they are read is read again.
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

    /// Puts what changed files hold in the place of what they held. Files that cannot be used, as
    /// in the middle of a rotation, change nothing and are read again.
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
            tokio::time::sleep(EVERY).await;
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
                    tracing::info!("the gRPC server's files have changed and were read again");
                }
                Ok(Some(Err(error))) => {
                    let text = error.to_string();
                    if warned.as_ref() != Some(&text) {
                        tracing::warn!(%error, "a changed file cannot be used; the old one counts");
                        warned = Some(text);
                    }
                }
                Ok(None) | Err(_) => {}
            }
        }
    }
}
