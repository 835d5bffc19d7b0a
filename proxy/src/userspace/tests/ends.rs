//! How connections end: whoever hears of an end or a failure hears what came before it, and what a proxy cuts off is not
//! taken for complete.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use socket2::Socket;

use super::world::{Netns, World};
use crate::userspace::testing::{Build, service};

const VIP: &str = "10.96.0.10:80";
/// Long enough for what was sent to arrive, on a busy machine too.
const SETTLE: Duration = Duration::from_millis(300);

/// A world in which the second pod handles each connection to the Service as told.
fn world(handle: impl Fn(TcpStream) + Send + Clone + 'static) -> World {
    let mut world = World::new();
    listen(&world.pods[1], "10.1.0.6:8080", handle);
    world.apply(vec![service("web", "10.96.0.10").port(80).ready("10.1.0.6", &[8080])], vec![]);
    world
}

fn listen(ns: &Netns, address: &str, handle: impl Fn(TcpStream) + Send + Clone + 'static) {
    let address: SocketAddr = address.parse().unwrap();
    ns.run(move || {
        let listener = TcpListener::bind(address).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let handle = handle.clone();
                std::thread::spawn(move || handle(stream.unwrap()));
            }
        });
    });
}

/// From the first pod.
fn connect(world: &World) -> TcpStream {
    world.pods[0].run(|| {
        let stream = TcpStream::connect(VIP).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(8))).unwrap();
        stream
    })
}

#[test]
fn a_slow_reader_gets_all_of_an_answer_whose_sender_is_gone() {
    /// More than the client's kernel takes, less than the proxy's.
    const ANSWER: usize = 600_000;
    let world = world(|mut stream| stream.write_all(&vec![7; ANSWER]).unwrap());
    let mut client = connect(&world);
    sleep(SETTLE);
    client.write_all(b"late").unwrap(); // is answered with a reset by the backend's machine
    sleep(SETTLE);
    let (mut seen, mut chunk) = (0, vec![0; 64 << 10]);
    while let Ok(count @ 1..) = client.read(&mut chunk) {
        seen += count;
    }
    assert_eq!(seen, ANSWER);
}

#[test]
fn an_answer_that_breaks_off_does_not_look_complete_however_slowly_it_is_read() {
    const PART: usize = 600_000;
    let world = world(|mut stream| {
        stream.read_to_end(&mut Vec::new()).unwrap();
        stream.write_all(&vec![7; PART]).unwrap();
        sleep(SETTLE);
        Socket::from(stream).set_linger(Some(Duration::ZERO)).unwrap(); // and closed: reset
    });
    let mut client = connect(&world);
    client.shutdown(Shutdown::Write).unwrap();
    sleep(SETTLE * 2);
    let (mut seen, mut chunk) = (0, vec![0; 64 << 10]);
    let end = loop {
        match client.read(&mut chunk) {
            Ok(count @ 1..) => seen += count,
            other => break other,
        }
    };
    assert_eq!((seen, end.unwrap_err().kind()), (PART, ErrorKind::ConnectionReset));
    world.wait_for("sheave_listener_active{protocol=\"TCP\"}", 0.0);
}

#[test]
fn an_answer_that_comes_before_the_question_is_read_arrives() {
    let world = world(|mut stream| {
        stream.read_exact(&mut [0]).unwrap();
        sleep(SETTLE / 3);
        stream.write_all(b"too large").unwrap(); // and closed with more unread, which resets
    });
    for _ in 0..5 {
        let mut client = connect(&world);
        let mut upload = client.try_clone().unwrap();
        let upload = std::thread::spawn(move || {
            while upload.write_all(&[1; 64 << 10]).is_ok() {} // until it hears that nobody reads
        });
        let mut text = [0; 9];
        sleep(SETTLE * 2);
        client.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"too large");
        upload.join().unwrap();
    }
}

#[test]
fn an_end_that_came_during_a_failed_try_is_passed_on() {
    let mut world = world(|mut stream| {
        let mut question = String::new();
        stream.read_to_string(&mut question).unwrap();
        stream.write_all(format!("{question}!").as_bytes()).unwrap();
    });
    // Nobody has 10.1.0.99; a try there takes a second.
    let both = service("web", "10.96.0.10").port(80).ready("10.1.0.99", &[8080]).ready("10.1.0.6", &[8080]);
    world.apply(vec![both], vec![]);
    let clients: Vec<_> = (0..12)
        .map(|_| {
            let mut client = connect(&world);
            client.write_all(b"end").unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            client
        })
        .collect();
    for mut client in clients {
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "end!");
    }
}

#[test]
fn a_stream_that_the_proxy_cuts_off_does_not_look_complete() {
    let mut world = world(|mut stream| {
        while stream.write_all(b"tick").is_ok() {
            sleep(Duration::from_millis(20))
        }
    });
    let mut client = connect(&world);
    client.read_exact(&mut [0; 8]).unwrap();
    world.stop();
    let mut chunk = [0; 4096];
    let end = loop {
        match client.read(&mut chunk) {
            Ok(1..) => {}
            other => break other,
        }
    };
    assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn urgent_bytes_stay_in_their_place_and_hold_nothing_up() {
    let world = world(|mut stream| {
        let mut chunk = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut chunk) {
            stream.write_all(&chunk[..count]).unwrap();
        }
    });
    let mut client = connect(&world);
    let mut expected = Vec::new();
    for round in 0..3 {
        // Large enough to be spliced in the second round.
        let before = vec![b'0' + round; if round == 1 { 100_000 } else { 10 }];
        client.write_all(&before).unwrap();
        Socket::from(client.try_clone().unwrap()).send_out_of_band(b"!").unwrap();
        client.write_all(b"ABOR\r\n").unwrap();
        expected = [before, b"!ABOR\r\n".to_vec()].concat();
        let mut seen = vec![0; expected.len()];
        client.read_exact(&mut seen).unwrap();
        assert!(seen == expected, "round {round}");
    }
    assert!(!expected.is_empty());
}

#[test]
fn a_client_that_resets_is_seen_by_a_backend_that_reads_nothing() {
    let (tell, told) = mpsc::channel();
    let world = world(move |stream| tell.send(stream).unwrap());
    let mut client = connect(&world);
    client.set_write_timeout(Some(SETTLE)).unwrap();
    while client.write(&[1; 64 << 10]).is_ok() {} // until everything on the way is full
    Socket::from(client).set_linger(Some(Duration::ZERO)).unwrap(); // and closed: reset
    let backend = told.recv().unwrap();
    let end = Instant::now() + Duration::from_secs(5);
    while backend.take_error().unwrap().is_none() {
        assert!(Instant::now() < end, "the backend hears nothing of it");
        sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_reset_is_an_error_of_the_service_only_where_the_backend_sends_it() {
    let broken =
        "sheave_service_errors_total{namespace=\"ns\",service=\"web\",port=\"p0\",protocol=\"TCP\",reason=\"broken\"}";
    let world = world(|mut stream| {
        let mut word = [0; 3];
        stream.write_all(b"hi").unwrap();
        let end = stream.read_exact(&mut word);
        if end.is_ok() {
            Socket::from(stream).set_linger(Some(Duration::ZERO)).unwrap(); // and closed: reset
        }
    });
    for (word, errors) in [(&b""[..], 0.0), (b"bye", 1.0)] {
        let mut client = connect(&world);
        client.read_exact(&mut [0; 2]).unwrap();
        client.write_all(word).unwrap();
        if word.is_empty() {
            Socket::from(client).set_linger(Some(Duration::ZERO)).unwrap(); // and closed: reset
        } else {
            assert!(client.read(&mut [0; 2]).is_err(), "no reset");
        }
        world.wait_for("sheave_listener_active{protocol=\"TCP\"}", 0.0);
        assert_eq!(world.metric(broken), errors);
    }
}
