//! An operator's calls over a unix socket, with a proxy behind that answers, or doesn't.

use std::collections::BTreeMap;
use std::time::Duration;

use sheave_api::encode_resource;
use sheave_api::proto::node_question::What;
use sheave_api::proto::operations_client::OperationsClient;
use sheave_api::proto::{
    self, Answer, LookRequest, NodeAnswer, NodeQuestion, NodeStatus, NodeStatusWanted, ServiceFilter, from_controller,
    from_proxy,
};
use sheave_model::{Resource, Service, ServiceKey, View};
use tonic::Code;
use tonic::transport::Channel;

use super::tests::{Proxy, World, node};

const SOON: Duration = Duration::from_secs(20);

fn question(node: &str) -> NodeQuestion {
    NodeQuestion { node: node.to_owned(), what: Some(What::Status(NodeStatusWanted {})) }
}

/// The next question that a proxy gets.
async fn asked(proxy: &mut Proxy) -> u64 {
    let next = tokio::time::timeout(SOON, proxy.updates.message()).await.expect("something comes");
    match next.unwrap().unwrap().message {
        Some(from_controller::Message::Question(question)) => {
            assert_eq!(question.question.unwrap().node, "n1");
            question.id
        }
        other => panic!("no question: {other:?}"),
    }
}

async fn say(proxy: &Proxy, answer: Answer) {
    proxy.send.send(proto::FromProxy { message: Some(from_proxy::Message::Answer(answer)) }).await.unwrap();
}

/// A world with one proxy in step, and an operator.
async fn world() -> (World, Proxy, OperationsClient<Channel>) {
    let world = World::new();
    world.publish(1, vec![node("n1"), node("n2")]);
    let mut proxy = world.subscribe(&BTreeMap::new(), View::default()).await;
    proxy.first().await;
    let operator = OperationsClient::new(world.connect().await);
    (world, proxy, operator)
}

#[tokio::test]
async fn an_answer_comes_in_the_proxys_parts_between_its_updates() {
    let (world, mut proxy, mut operator) = world().await;
    let answering = async {
        let id = asked(&mut proxy).await;
        // A stream serves its updates meanwhile.
        world.publish(2, vec![node("n1")]);
        let status = NodeStatus { node: "n1".into(), ..NodeStatus::default() };
        say(
            &proxy,
            Answer { id, part: Some(NodeAnswer { status: Some(status), ..NodeAnswer::default() }), last: false },
        )
        .await;
        say(&proxy, Answer { id, part: Some(NodeAnswer { error: "cut".into(), ..NodeAnswer::default() }), last: true })
            .await;
    };
    let mut parts = Vec::new();
    let asking = async {
        let mut answer = operator.ask_node(question("n1")).await.unwrap().into_inner();
        while let Some(part) = answer.message().await.unwrap() {
            parts.push(part);
        }
    };
    tokio::join!(answering, asking);
    assert_eq!(parts[0].status.as_ref().map(|status| status.node.as_str()), Some("n1"));
    assert_eq!((parts.len(), parts[1].error.as_str()), (2, "cut"));
    let count = |result| world.metrics.relayed_questions.with_label_values(&[result]).get();
    assert_eq!((count("answered"), count("failed")), (1, 0));
}

#[tokio::test]
async fn a_node_that_cannot_answer_is_told_from_one_that_is_unknown() {
    let (_world, mut proxy, mut operator) = world().await;
    let refused = operator.ask_node(question("n2")).await.unwrap().into_inner().message().await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound, "{refused}");
    let asking = operator.clone().ask_node(question("n1")).await.unwrap();
    asked(&mut proxy).await;
    drop(proxy);
    let mut asking = asking.into_inner();
    let cut = tokio::time::timeout(SOON, asking.message()).await.expect("it ends").unwrap_err();
    assert_eq!(cut.code(), Code::Unavailable, "{cut}");
}

#[tokio::test]
async fn the_overview_says_how_far_each_node_has_come_and_services_where_they_are_programmed() {
    let (world, mut proxy, mut operator) = world().await;
    let web = Service {
        key: ServiceKey::new("ns", "web"),
        created: 1,
        cluster_ips: vec!["10.96.0.1".parse().unwrap()],
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        internal_policy: sheave_model::Policy::Cluster,
        external_policy: sheave_model::Policy::Cluster,
        affinity: None,
        source_ranges: Vec::new(),
        ports: vec![sheave_model::ServicePort {
            name: "http".into(),
            protocol: sheave_model::Protocol::Tcp,
            port: 80,
            node_port: Some(30_080),
            app: sheave_model::AppProtocol::Opaque,
        }],
        endpoints: Vec::new(),
    };
    let resource = Resource::Service(web);
    world.publish(2, vec![(resource.key(), Some(encode_resource(&resource)))]);
    let update = proxy.update().await.unwrap();
    let listed = async |operator: &mut OperationsClient<Channel>| {
        let filter = ServiceFilter { namespace: "ns".into(), name: String::new() };
        let mut lists = operator.known_services(filter).await.unwrap().into_inner();
        lists.message().await.unwrap().unwrap().services.remove(0)
    };
    let before = listed(&mut operator).await;
    assert_eq!((before.programmed, before.frontends.as_slice()), (0, ["10.96.0.1:80/TCP".to_owned()].as_slice()));
    assert_eq!(before.ports, ["80:30080/TCP"]);
    proxy.ack(update.nonce, Vec::new()).await;
    let programmed = async {
        while listed(&mut operator).await.programmed != 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, programmed).await.expect("the Ack is taken");
    let overview = operator.look(LookRequest {}).await.unwrap().into_inner();
    assert_eq!((overview.revision, overview.services, overview.replica.as_str()), (3, 1, "test"));
    assert_eq!(overview.nodes, ["n1", "n2"]);
    assert_eq!((overview.streams[0].node.as_str(), overview.streams[0].programmed), ("n1", 3));
    // Another node's facts are no business of this one, so there is nothing to wait for.
    world.publish(3, vec![node("n3")]);
    let skipped = async {
        while operator.look(LookRequest {}).await.unwrap().into_inner().streams[0].programmed != 4 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, skipped).await.expect("the node is up to date");
}
