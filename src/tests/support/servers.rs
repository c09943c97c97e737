//! Servers that are started for one test: SeaweedFS for S3, fake-gcs-server, and small web servers.
#![allow(dead_code, reason = "each test binary uses some of it")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::{ObjectStoreExt, RetryConfig};

use super::support::installed;

const SETUP: &str = "scripts/setup.sh --with servers";

/// Time for a server to start: one or two seconds, and more on a busy machine.
const STARTS_WITHIN: Duration = Duration::from_secs(60);

/// A server process that is killed when it is dropped.
pub struct Server {
    child: Child,
    _folder: tempfile::TempDir,
    /// Environment variables that a client needs.
    pub environment: Vec<(&'static str, String)>,
}

impl Drop for Server {
    fn drop(&mut self) {
        // the process may have ended already
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// SeaweedFS with its S3 gateway and one empty bucket.
    pub fn seaweedfs(bucket: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let identity = r#"{"identities": [{"name": "test", "actions": ["Admin"],
            "credentials": [{"accessKey": "key", "secretKey": "very-secret"}]}]}"#;
        std::fs::write(folder.path().join("s3.json"), identity).expect("a file");
        let ports = free_ports(8);
        let s3 = ports[0];
        let at = |name: &str| format!("{}={}", name, folder.path().display());
        let mut command = Command::new(installed("servers/weed", SETUP));
        command.arg("server").arg(at("-dir")).args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"]);
        for (flag, port) in [
            "s3.port",
            "s3.port.grpc",
            "master.port",
            "master.port.grpc",
            "volume.port",
            "volume.port.grpc",
            "filer.port",
            "filer.port.grpc",
        ]
        .iter()
        .zip(&ports)
        {
            command.arg(format!("-{flag}={port}"));
        }
        command.args(["-master.telemetry=false", "-master.volumeSizeLimitMB=64", "-volume.max=50"]);
        command.args(["-volume.preStopSeconds=0", "-s3.port.iceberg=0", "-s3.port.lance=0"]);
        command
            .arg(format!("{}/s3.json", at("-s3.config")))
            .arg(format!("{}/filer.sock", at("-filer.localSocket")));
        command.arg(format!("{}/s3.sock", at("-s3.localSocket")));
        let endpoint = format!("http://127.0.0.1:{s3}");
        let environment = vec![
            ("AWS_ENDPOINT_URL", endpoint),
            ("AWS_ACCESS_KEY_ID", "key".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "very-secret".to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
        ];
        let server = Self::started(command, folder, environment);
        let start = Instant::now();
        while !server.make_bucket(bucket) {
            assert!(start.elapsed() < STARTS_WITHIN, "SeaweedFS does not create a bucket");
            std::thread::sleep(Duration::from_millis(100));
        }
        server
    }

    /// fake-gcs-server with the files of the folder `files` in a bucket.
    pub fn fake_gcs(bucket: &str, files: &Path) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let seed = folder.path().join("seed").join(bucket);
        std::fs::create_dir_all(&seed).expect("a folder");
        for entry in std::fs::read_dir(files).expect("a folder") {
            let entry = entry.expect("an entry");
            std::fs::copy(entry.path(), seed.join(entry.file_name())).expect("a copy");
        }
        let address = format!("127.0.0.1:{}", free_ports(1)[0]);
        let (host, port) = address.split_once(':').expect("host and port");
        let mut command = Command::new(installed("servers/fake-gcs-server", SETUP));
        command.args(["-scheme", "http", "-backend", "memory", "-host", host, "-port", port]);
        // the server distinguishes the two forms of its URLs by the host name
        command.args(["-public-host", &address, "-data"]).arg(folder.path().join("seed"));
        let server = Self::started(command, folder, vec![("STORAGE_EMULATOR_HOST", address.clone())]);
        let start = Instant::now();
        while TcpStream::connect(&address).is_err() {
            assert!(start.elapsed() < STARTS_WITHIN, "fake-gcs-server does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    fn started(
        mut command: Command,
        folder: tempfile::TempDir,
        environment: Vec<(&'static str, String)>,
    ) -> Self {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Self { child: child.expect("the server starts"), _folder: folder, environment }
    }

    /// A client for a bucket of SeaweedFS.
    pub fn bucket(&self, bucket: &str) -> AmazonS3 {
        let mut builder = AmazonS3Builder::new().with_bucket_name(bucket).with_allow_http(true);
        for (key, value) in &self.environment {
            builder = match *key {
                "AWS_ENDPOINT_URL" => builder.with_endpoint(value),
                "AWS_ACCESS_KEY_ID" => builder.with_access_key_id(value),
                "AWS_SECRET_ACCESS_KEY" => builder.with_secret_access_key(value),
                _ => builder.with_region(value),
            };
        }
        let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
        builder.with_retry(retry).build().expect("a client")
    }

    /// Create a bucket by storing an object in it. Returns whether the server was ready.
    fn make_bucket(&self, bucket: &str) -> bool {
        let store = self.bucket(bucket);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let made = runtime.block_on(async {
            let path = "made".into();
            store.put(&path, "x".into()).await?;
            store.delete(&path).await
        });
        made.is_ok()
    }
}

/// Distinct ports that are not in use.
fn free_ports(count: usize) -> Vec<u16> {
    let bound: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
    bound.iter().map(|listener| listener.local_addr().expect("an address").port()).collect()
}

/// Start a web server that gives the same answer to every request. Returns its URL.
pub fn always(status: u16, body: String) -> String {
    counting(status, body).0
}

/// As [`always`]; also returns the number of connections so far.
pub fn counting(status: u16, body: String) -> (String, Arc<AtomicUsize>) {
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&requests);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let answer =
        format!("HTTP/1.1 {status} So\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            counted.fetch_add(1, Ordering::Relaxed);
            // a client may close the connection at any time
            let _ = read_request(&stream).and_then(|()| stream.write_all(answer.as_bytes()));
        }
    });
    (format!("http://{address}"), requests)
}

/// Start a web server with these objects, each at the exact path and query of a request; others are not found.
pub fn objects_by_address(objects: Vec<(&'static str, Vec<u8>)>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // a client may close the connection at any time
            let _ = answer_by_address(&stream, &objects);
        }
    });
    format!("http://{address}")
}

fn answer_by_address(mut stream: &TcpStream, objects: &[(&'static str, Vec<u8>)]) -> std::io::Result<()> {
    let head: Vec<String> =
        BufReader::new(stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    let mut request = head.first().map_or("", String::as_str).split(' ');
    let (method, target) = (request.next().unwrap_or_default(), request.next().unwrap_or_default());
    let Some((_, object)) = objects.iter().find(|(address, _)| *address == target) else {
        return stream.write_all(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    };
    let range = head.iter().find_map(|line| {
        let (name, range) = line.split_once(": bytes=")?;
        let (first, last) = range.split_once('-')?;
        let last = last.parse().unwrap_or(usize::MAX).min(object.len() - 1);
        name.eq_ignore_ascii_case("range").then(|| Some((first.parse::<usize>().ok()?, last)))?
    });
    let (status, content_range, bytes) = match range {
        Some((first, last)) => {
            let stated = format!("Content-Range: bytes {first}-{last}/{}\r\n", object.len());
            (206, stated, &object[first..=last])
        }
        None => (200, String::new(), &object[..]),
    };
    let length = bytes.len();
    write!(
        stream,
        "HTTP/1.1 {status} So\r\n{content_range}Content-Length: {length}\r\nETag: \"{}\"\r\nConnection: close\r\n\r\n",
        object.len()
    )?;
    if method == "GET" { stream.write_all(bytes) } else { Ok(()) }
}

/// A URL at which no server listens.
pub fn unused_url() -> String {
    format!("http://127.0.0.1:{}", free_ports(1)[0])
}

fn read_request(stream: &TcpStream) -> std::io::Result<()> {
    let (mut reader, mut body_bytes) = (BufReader::new(stream), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if line.trim().is_empty() {
            return std::io::copy(&mut reader.take(body_bytes), &mut std::io::sink()).map(drop);
        }
        if let Some(length) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            body_bytes = length.trim().parse().map_err(std::io::Error::other)?;
        }
    }
}
