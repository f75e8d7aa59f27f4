//! A peer's DNS name whose address changes: every new connection resolves it again.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use podlink::clock::{Clock, Tick};
use podlink::config::{
    Allowed, ClientConfig, PeerClientConfig, PeerServerConfig, PeerUrl, RouteInfoConfig,
    SettingsGroup,
};
use podlink::driver::info::InfoDriver;
use podlink::driver::peer::LocalPeer;
use podlink::id::Namespace;
use podlink::op::{Get, LinkSource, SetIfAbsent, expected};
use podlink::rpc::Peer;
use podlink::rpc::client::{HostResolver, PeerClient};
use podlink::rpc::server::Server;
use podlink::store::MemoryStore;

use crate::server::{PATIENCE, eventually};
use crate::stage::{link, pod};

/// A fake resolver that counts lookups.
#[derive(Debug, Default)]
struct Zone {
    addresses: Mutex<Vec<SocketAddr>>,
    asked: Mutex<Vec<String>>,
}

impl Zone {
    fn set(&self, addresses: &[SocketAddr]) {
        *self.addresses.lock().unwrap() = addresses.to_vec();
    }

    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

#[async_trait]
impl HostResolver for Zone {
    async fn addresses(&self, host: &str, _port: u16) -> io::Result<Vec<SocketAddr>> {
        self.asked.lock().unwrap().push(host.to_owned());
        Ok(self.addresses.lock().unwrap().clone())
    }
}

/// A server on its own store, in which the user is linked to this pod.
async fn serving(index: i64, connection_age: Duration) -> (Server, SocketAddr) {
    let client = ClientConfig {
        link_ttl: PATIENCE,
        cache_ttl: Duration::ZERO,
        cache_capacity: 10,
        timeout: PATIENCE,
        ..ClientConfig::defaults().unwrap()
    };
    let info = RouteInfoConfig {
        idle: PATIENCE,
        tag_ttl: Duration::ZERO,
        ..RouteInfoConfig::defaults().unwrap()
    };
    let store = MemoryStore::open(None, Clock::System).unwrap();
    let prod = Namespace::new("prod").unwrap();
    let info = InfoDriver::new(store.clone(), Clock::System, prod.clone(), info);
    let local = LocalPeer::on(store, Clock::System, prod.clone(), client, info);
    let user = link("prod", "u1", "svc");
    let set = SetIfAbsent {
        link: user,
        pod: pod(index),
        ttl: Duration::ZERO,
    };
    local.call(&set.into(), deadline()).await.unwrap();
    let config = PeerServerConfig {
        allowed: vec![Allowed {
            caller: None,
            method: None,
            namespace: None,
        }],
        max_event_streams: 16,
        max_connections: 16,
        peer_rate: 1_000_000,
        request_timeout: PATIENCE,
        keepalive: PATIENCE,
        keepalive_timeout: PATIENCE,
        connection_age,
        connection_grace: PATIENCE,
        reflection: false,
        ..PeerServerConfig::defaults().unwrap()
    };
    let server = Server::new(Arc::new(local), prod, config, Clock::System);
    let address = server.start().await.unwrap();
    (server, address)
}

fn client(zone: &Arc<Zone>) -> PeerClient {
    let config = PeerClientConfig {
        // The resolved addresses carry the port, as for a name that stands for host and port.
        endpoints: vec![PeerUrl::parse("grpc://podlink.prod.example:50051").unwrap()],
        timeout: PATIENCE,
        keepalive: PATIENCE,
        keepalive_timeout: PATIENCE,
        ..PeerClientConfig::defaults().unwrap()
    };
    let names = Arc::clone(zone) as Arc<dyn HostResolver>;
    PeerClient::with_names(config, Clock::System, names).unwrap()
}

fn deadline() -> Tick {
    Clock::System.deadline(PATIENCE)
}

/// The pod of the user, from the server that the client reaches.
async fn found(client: &PeerClient) -> i64 {
    let user = link("prod", "u1", "svc");
    let get = Get {
        link: user,
        from: LinkSource::Store,
    };
    let found = client.call(&get.into(), deadline()).await.unwrap();
    i64::from(expected::<Get>(found).unwrap().unwrap().pod.get())
}

#[tokio::test]
async fn a_name_is_looked_up_again_when_its_server_has_gone() {
    let (first, first_address) = serving(1, PATIENCE).await;
    let (_second, second_address) = serving(2, PATIENCE).await;
    let zone = Arc::new(Zone::default());
    zone.set(&[first_address]);
    let client = client(&zone);
    assert_eq!(found(&client).await, 1);
    assert_eq!(zone.asked.lock().unwrap()[0], "podlink.prod.example");
    zone.set(&[second_address]);
    // The connection works, so the client must not resolve the name again.
    assert_eq!((found(&client).await, zone.asked()), (1, 1));
    first.stop(deadline()).await;
    assert_eq!(found(&client).await, 2);
}

#[tokio::test]
async fn a_name_is_looked_up_again_when_its_connection_has_grown_old() {
    let (_first, first_address) = serving(1, Duration::from_secs(1)).await;
    let (_second, second_address) = serving(2, PATIENCE).await;
    let zone = Arc::new(Zone::default());
    zone.set(&[first_address]);
    let client = client(&zone);
    assert_eq!(found(&client).await, 1);
    zone.set(&[second_address]);
    // The first server keeps running, and no call fails.
    let moved = async || (found(&client).await == 2).then_some(());
    eventually("calls go to the new address", moved).await;
}

#[tokio::test]
async fn the_addresses_of_a_name_are_tried_in_turn() {
    let (gone, gone_address) = serving(1, PATIENCE).await;
    gone.stop(deadline()).await;
    let (_server, address) = serving(2, PATIENCE).await;
    let zone = Arc::new(Zone::default());
    zone.set(&[gone_address, address]);
    assert_eq!(found(&client(&zone)).await, 2);
}
