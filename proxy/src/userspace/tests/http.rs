//! HTTP/1.1 through the listeners: a backend for each request.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use sheave_model::Service;

use super::world::{Netns, World};
use crate::userspace::testing::{Build, service};

fn api() -> Service {
    service("api", "10.96.0.80 fd96::80").http(80)
}

/// A server that keeps connections open and answers with its name and the X-Forwarded-For that it saw.
fn serve(ns: &Netns, name: &'static str, address: &'static str) {
    ns.run(move || {
        let listener = TcpListener::bind(address).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                std::thread::spawn(move || answer_all(name, stream.unwrap()));
            }
        });
    });
}

fn answer_all(name: &str, mut stream: TcpStream) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    loop {
        let (mut forwarded, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            let lower = line.to_ascii_lowercase();
            if let Some(value) = lower.strip_prefix("x-forwarded-for:") {
                forwarded = value.trim().to_owned();
            }
            if let Some(value) = lower.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let text = format!("{name} {forwarded} {length}");
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", text.len());
        stream.write_all((head + &text).as_bytes()).unwrap();
    }
}

struct Client(BufReader<TcpStream>);

impl Client {
    fn new(ns: &Netns, address: &'static str) -> Self {
        let stream = ns.run(move || TcpStream::connect(address)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(8))).unwrap();
        Self(BufReader::new(stream))
    }

    /// Status and body.
    fn ask(&mut self, body: &str) -> (u16, String) {
        let request = format!("POST / HTTP/1.1\r\nhost: api\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        self.0.get_mut().write_all(request.as_bytes()).unwrap();
        let (mut status, mut length) = (0, 0);
        loop {
            let mut line = String::new();
            assert_ne!(self.0.read_line(&mut line).unwrap(), 0, "the connection ended before the answer");
            if let Some(rest) = line.strip_prefix("HTTP/1.1 ") {
                status = rest[..3].parse().unwrap();
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).unwrap();
        (status, String::from_utf8(body).unwrap())
    }
}

#[test]
fn each_request_of_one_connection_gets_a_backend_of_its_own() {
    let mut world = World::new();
    serve(&world.pods[0], "five", "10.1.0.5:8080");
    serve(&world.pods[1], "six", "10.1.0.6:8080");
    serve(&world.pods[1], "six", "[fd01::6]:8080");
    // The third refuses: a request that meets it goes to another.
    let all =
        api().ready("10.1.0.5", &[8080]).ready("10.1.0.6", &[8080]).ready("10.2.0.7", &[1]).ready("fd01::6", &[8080]);
    world.apply(vec![all], vec![]);
    let mut client = Client::new(&world.outside, "10.96.0.80:80");
    let mut seen = BTreeSet::new();
    for _ in 0..30 {
        let (status, body) = client.ask("hello");
        assert_eq!(status, 200, "{body}");
        seen.insert(body);
    }
    assert_eq!(seen, ["five 10.0.0.9 5", "six 10.0.0.9 5"].map(str::to_owned).into());
    let (status, body) = Client::new(&world.pods[0], "[fd96::80]:80").ask("x");
    assert_eq!((status, body.as_str()), (200, "six fd01::5 1"));

    // The set changes under an open connection.
    world.apply(vec![api().ready("10.1.0.6", &[8080])], vec![]);
    assert_eq!(client.ask("hello").1, "six 10.0.0.9 5");
    world.apply(vec![api()], vec![]);
    assert_eq!(client.ask("hello").0, 503);
    assert_eq!(Client::new(&world.node, "10.96.0.80:80").ask("x").0, 503, "none at all is answered and not refused");
    let none = "sheave_service_errors_total{namespace=\"ns\",service=\"api\",port=\"p0\",protocol=\"TCP\",reason=\"no_endpoint\"}";
    world.wait_for(none, 2.0);
    let bytes =
        "sheave_service_bytes_total{namespace=\"ns\",service=\"api\",port=\"p0\",protocol=\"TCP\",direction=\"in\"}";
    assert!(world.metric(bytes) >= 30.0 * 5.0);
}
