//! The limit of what a client in this process could carry: redis-rs, tokio and nothing around them.
//!
//! It runs the script that podlink's computes run, with the same keys and arguments, on one
//! multiplexed connection that all tasks share. `benches/python/misses.py` starts it, because the
//! rounds of all contenders take turns:
//!
//!     core HOST PORT THREADS FORMAT     FORMAT is a key with {uid} where the user's name goes
//!
//! Each line of the input, `TASKS CALLS NAME`, is one round: that many tasks share that many users,
//! called `NAME-0000000` and so on. The line that answers it is how many seconds they took, and how
//! many links they made.

use std::error::Error;
use std::io::{BufRead, Write, stdin, stdout};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{AsyncConnectionConfig, Client, IntoConnectionInfo};
use tokio::runtime::{Builder, Runtime};

/// The script, the very file that podlink runs.
const SCRIPT: &str = include_str!("../src/store/lua/set_if_absent.lua");
/// The pod that is offered for each user, and for how long, in milliseconds.
const POD: u32 = 0;
const TTL_MS: u32 = 300_000;
/// As long as podlink's own line in front of the socket.
const QUEUE: usize = 1024;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// What the reply of the script is made of: verdict, owner, remaining milliseconds, previous owner.
type Reply = (String, String, i64, String);

/// What every task needs.
struct Course {
    connection: MultiplexedConnection,
    hash: String,
    key: (String, String),
}

impl Course {
    async fn prepare(host: &str, port: u16, format: &str) -> Outcome<Self> {
        let settings = TcpSettings::default().set_nodelay(true);
        let address = (host, port)
            .into_connection_info()?
            .set_tcp_settings(settings);
        let config = AsyncConnectionConfig::new()
            .set_response_timeout(None)
            .set_pipeline_buffer_size(QUEUE);
        let client = Client::open(address)?;
        let mut connection = client
            .get_multiplexed_async_connection_with_config(&config)
            .await?;
        let hash = redis::cmd("SCRIPT")
            .arg("LOAD")
            .arg(SCRIPT)
            .query_async(&mut connection)
            .await?;
        let (before, after) = format.split_once("{uid}").ok_or("FORMAT has no {uid}")?;
        Ok(Self {
            connection,
            hash,
            key: (before.to_owned(), after.to_owned()),
        })
    }

    /// Places a user; says whether that made a link.
    async fn place(&self, connection: &mut MultiplexedConnection, uid: &str) -> Outcome<bool> {
        let (before, after) = &self.key;
        let reply: Reply = redis::cmd("EVALSHA")
            .arg(&self.hash)
            .arg(1)
            .arg(format!("{before}{uid}{after}"))
            .arg(POD)
            .arg(TTL_MS)
            .query_async(connection)
            .await?;
        Ok(reply.0 == "made")
    }

    /// What one task does: the next user, as long as there is one. Returns the links it made.
    async fn work(
        self: Arc<Self>,
        name: Arc<str>,
        next: Arc<AtomicUsize>,
        calls: usize,
    ) -> Outcome<usize> {
        let mut connection = self.connection.clone();
        let mut made = 0;
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= calls {
                return Ok(made);
            }
            let uid = format!("{name}-{number:07}");
            made += usize::from(self.place(&mut connection, &uid).await?);
        }
    }

    /// One round. Returns its seconds and how many links it made.
    #[allow(
        clippy::disallowed_methods,
        reason = "a benchmark asks how long things take"
    )]
    async fn round(
        self: &Arc<Self>,
        tasks: usize,
        calls: usize,
        name: &str,
    ) -> Outcome<(f64, usize)> {
        let (name, next): (Arc<str>, _) = (name.into(), Arc::new(AtomicUsize::new(0)));
        let began = Instant::now();
        let workers: Vec<_> = (0..tasks)
            .map(|_| {
                tokio::spawn(Arc::clone(self).work(Arc::clone(&name), Arc::clone(&next), calls))
            })
            .collect();
        let mut made = 0;
        for worker in workers {
            made += worker.await??;
        }
        Ok((began.elapsed().as_secs_f64(), made))
    }
}

/// One thread: the calling one alone.
fn runtime(threads: usize) -> Outcome<Runtime> {
    Ok(match threads {
        1 => Builder::new_current_thread().enable_all().build()?,
        _ => Builder::new_multi_thread()
            .worker_threads(threads)
            .enable_all()
            .build()?,
    })
}

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|each| each != "--bench")
        .collect();
    let [host, port, threads, format] = arguments.as_slice() else {
        return Err(
            "usage: core HOST PORT THREADS FORMAT; benches/python/misses.py runs it".into(),
        );
    };
    let runtime = runtime(threads.parse()?)?;
    let course = Arc::new(runtime.block_on(Course::prepare(host, port.parse()?, format))?);
    for line in stdin().lock().lines() {
        let line = line?;
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [tasks, calls, name] = fields.as_slice() else {
            return Err(format!("{line:?} is not `TASKS CALLS NAME`").into());
        };
        let (seconds, made) =
            runtime.block_on(async { course.round(tasks.parse()?, calls.parse()?, name).await })?;
        writeln!(stdout(), "{seconds} {made}")?;
    }
    Ok(())
}
