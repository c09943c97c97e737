//! Services of this process: the pool of workers and the expansion service.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::sleep;
use tonic::transport::server::{Router, TcpIncoming};

use super::connection::{ALIVE_IDLE, ALIVE_INTERVAL, ALIVE_RETRIES};

/// How long requests in progress may take after a stop. A client that is frozen keeps its connection open for ever.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// Serve `router` at `address` until `stop`. `name` is that of the service in messages. `ready` gets the address when
/// the service accepts connections. TCP keepalive closes the connections of hosts that have vanished.
///
/// # Errors
/// If it cannot listen there.
pub async fn serve_until(
    mut stop: watch::Receiver<bool>,
    name: &str,
    address: &str,
    router: Router,
    ready: impl FnOnce(SocketAddr),
) -> Result<(), String> {
    let failed = |error: &dyn std::error::Error| format!("the {name} cannot listen at {address}: {error}");
    let listener = TcpListener::bind(address).await.map_err(|error| failed(&error))?;
    ready(listener.local_addr().map_err(|error| failed(&error))?);
    let incoming = TcpIncoming::from(listener)
        .with_keepalive(Some(ALIVE_IDLE))
        .with_keepalive_interval(Some(ALIVE_INTERVAL))
        .with_keepalive_retries(Some(ALIVE_RETRIES));
    let mut stopping = stop.clone();
    let served = router.serve_with_incoming_shutdown(incoming, async move {
        let _ = stopping.wait_for(|stop| *stop).await;
    });
    tokio::select! {
        served = served => served.map_err(|error| failed(&error)),
        // connections stay open as long as their clients want
        () = async {
            let _ = stop.wait_for(|stop| *stop).await;
            sleep(STOP_TIMEOUT).await;
        } => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::sync::mpsc::{Receiver, channel};
    use std::time::Instant;

    use tokio::runtime::Runtime;
    use tonic::service::Routes;
    use tonic::transport::Server;

    use super::*;
    use crate::beam::boot::Process;
    use crate::beam::connection::connect;
    use crate::beam::environment::Environment;
    use crate::beam::expansion_service::ExpansionService;

    /// More than a service needs to end, and less than anybody would wait.
    const END: Duration = Duration::from_secs(20);

    type Served = Receiver<Result<(), String>>;

    /// Run a service. Returns its address, and how it ends.
    fn start<S: Future<Output = Result<(), String>> + Send + 'static>(
        runtime: &Runtime,
        serve: impl FnOnce(Box<dyn FnOnce(SocketAddr) + Send>) -> S,
    ) -> (SocketAddr, Served) {
        let ((ready, address), (ended, end)) = (channel(), channel());
        let served = serve(Box::new(move |address| ready.send(address).expect("a test")));
        runtime.spawn(async move {
            let _ = ended.send(served.await);
        });
        (address.recv_timeout(END).expect("a service"), end)
    }

    /// The connection of a client that opens HTTP/2, and then neither reads nor writes.
    fn frozen_client(address: SocketAddr) -> TcpStream {
        let mut client = TcpStream::connect(address).expect("a connection");
        client.set_read_timeout(Some(END)).expect("a socket");
        // an empty SETTINGS frame
        client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").expect("sent");
        // the service has begun, too
        client.read_exact(&mut [0; 9]).expect("its SETTINGS frame");
        client
    }

    #[test]
    fn a_service_ends_when_it_is_stopped_although_a_client_is_frozen() {
        let runtime = Runtime::new().expect("a runtime");
        let stop = watch::Sender::new(false);
        let (process, stopped) = (Process::new(runtime.handle().clone()), stop.subscribe());
        let pool = start(&runtime, |ready| async move { process.pool("127.0.0.1:0", stopped, ready).await });
        let service = ExpansionService::new(Environment::External { pool: "localhost:1".to_owned() });
        let stopped = stop.subscribe();
        let expansion =
            start(&runtime, |ready| async move { service.serve("127.0.0.1:0", stopped, ready).await });
        let _clients = [&pool, &expansion].map(|(address, _)| frozen_client(*address));
        stop.send_replace(true);
        for (_, end) in [pool, expansion] {
            assert_eq!(end.recv_timeout(END).expect("it ends"), Ok(()));
        }
    }

    /// The timer of the connection between two ports of this host: 2 is that of keepalive.
    fn timer(local: u16, remote: u16) -> Option<u8> {
        let ends = format!(" 0100007F:{local:04X} 0100007F:{remote:04X} 01 ");
        let connections = fs::read_to_string("/proc/self/net/tcp").expect("connections");
        let (_, rest) = connections.lines().find_map(|line| line.split_once(&ends))?;
        // queues, then the timer
        let timer = rest.split(' ').nth(1)?.split(':').next()?;
        timer.parse().ok()
    }

    #[test]
    fn both_ends_of_a_connection_have_keepalive() {
        let runtime = Runtime::new().expect("a runtime");
        let stop = watch::Sender::new(false);
        let stopped = stop.subscribe();
        let (address, _end) = start(&runtime, |ready| async move {
            let router = Server::builder().add_routes(Routes::default());
            serve_until(stopped, "service", "127.0.0.1:0", router, ready).await
        });
        let _channel = runtime.block_on(connect("service", &address.to_string())).expect("a connection");
        let connections = || fs::read_to_string("/proc/self/net/tcp").expect("connections");
        let to_service = format!(" 0100007F:{:04X} 01 ", address.port());
        let client = connections().lines().find_map(|line| {
            let (local, _) = line.split_once(&to_service)?;
            u16::from_str_radix(local.rsplit(':').next()?, 16).ok()
        });
        let client = client.expect("a connection");
        let asked = Instant::now();
        // data that has not been acknowledged has a timer of its own
        for (local, remote) in [(client, address.port()), (address.port(), client)] {
            while timer(local, remote) != Some(2) {
                assert!(asked.elapsed() < END, "{local} to {remote}: {:?}", timer(local, remote));
                std::thread::yield_now();
            }
        }
    }

    #[test]
    fn an_address_that_is_taken_is_named() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = taken.local_addr().expect("an address").to_string();
        let stop = watch::Sender::new(false);
        let router = Server::builder().add_routes(Routes::default());
        let served = serve_until(stop.subscribe(), "pool", &address, router, |_| panic!("it is taken"));
        let error = Runtime::new().expect("a runtime").block_on(served).expect_err("it is taken");
        assert!(error.starts_with(&format!("the pool cannot listen at {address}: ")), "{error}");
    }
}
