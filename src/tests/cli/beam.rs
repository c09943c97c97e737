//! `sluice beam` without a runner: arguments and signals.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::*;

#[test]
fn a_grace_that_is_no_time_of_a_day_is_refused() {
    let run = ["run", "p.toml"];
    let worker = ["--log-format=json", "beam", "worker", "--id", "x", "--control_endpoint", "localhost:1"];
    for command in [&run[..], &worker[..]] {
        for grace in ["nan", "inf", "-1", "86401"] {
            let output = sluice().args(command).arg(format!("--grace={grace}")).output().expect("starts");
            assert_code(&output, 2);
            let message = stderr(&output);
            assert!(message.contains("--grace: must be between 0 and 86400 seconds"), "{message}");
        }
    }
}

#[test]
fn a_pool_and_an_expansion_service_exit_with_0_on_sigterm_although_a_client_is_frozen() {
    let pool = ["worker", "--pool", "127.0.0.1:0", "--grace", "20"];
    let service = ["expansion-service", "--listen", "127.0.0.1:0", "--environment", "external=localhost:1"];
    for arguments in [&pool[..], &service[..]] {
        let mut command = sluice();
        command.args(["--log-format", "json", "beam"]).args(arguments).stderr(Stdio::piped());
        let mut process = command.spawn().expect("the binary starts");
        let mut log = BufReader::new(process.stderr.take().expect("a pipe"));
        let mut line = String::new();
        log.read_line(&mut line).expect("a line of the log");
        let line: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        let address = line["address"].as_str().expect("the address of the service");
        // a client that opens HTTP/2 with an empty SETTINGS frame, and then neither reads nor writes
        let mut client = TcpStream::connect(address).expect("a connection");
        client.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
        client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").expect("sent");
        client.read_exact(&mut [0; 9]).expect("the SETTINGS frame of the service");
        send(Signal::TERM, &process);
        assert_eq!(process.wait().expect("a child").code(), Some(0), "{arguments:?}");
        let mut rest = String::new();
        log.read_to_string(&mut rest).expect("the rest of the log");
        assert!(rest.contains("a second signal exits at once"), "{rest}");
    }
}
