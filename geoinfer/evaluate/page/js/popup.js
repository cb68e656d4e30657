// The card of one photo, beside its point on the map: what it shows, its picture, the truth, the answer, what it was like.

const CARD_GAP = 14;

function buildCard(photo, { pinned, stack, actions }) {
  return [
    el(
      "header",
      { class: "card-head" },
      nameText(photos.id[photo], "card-name"),
      pinned ? el("button", { type: "button", class: "card-close", "aria-label": "Close", click: actions.close }, "✕") : null,
    ),
    el(
      "div",
      { class: "card-body" },
      pictureOf(photo) ? el("img", { class: "card-picture", src: pictureOf(photo), alt: "The photo" }) : null,
      el("dl", { class: "card-facts" }, ...factsOf(photo)),
    ),
    ...(photos.candidates[photo]?.length ? candidateList(photo) : []),
    ...(pinned ? cardFooter(photo, stack, actions) : []),
  ];
}

function fact(label, ...value) {
  return el("div", { class: "fact" }, el("dt", {}, label), el("dd", {}, ...value));
}

function factsOf(photo) {
  const facts = [];
  const { path, place, reason, status } = photos;
  if (isEvaluation) {
    facts.push(fact("Error", bandMark(photos.band[photo]), el("strong", {}, formatKm(photos.error[photo]))));
    facts.push(fact("Truth", placeLine(place[photo]), formatPlace(photos.trueLat[photo], photos.trueLon[photo])));
    facts.push(fact("Prediction", formatPlace(photos.lat[photo], photos.lon[photo])));
  } else {
    facts.push(fact("Radius", bandMark(photos.band[photo]), el("strong", {}, formatKm(photos.radius[photo]))));
    facts.push(fact("Prediction", placeLine(place[photo]), formatPlace(photos.lat[photo], photos.lon[photo])));
  }
  if (!Number.isNaN(photos.score[photo])) facts.push(fact("Score", formatScore(photos.score[photo])));
  if (isEvaluation && !Number.isNaN(photos.radius[photo])) facts.push(fact("Radius", formatKm(photos.radius[photo])));
  if (status[photo] && status[photo] !== "ok") facts.push(fact("Status", statusName(photo)));
  if (reason[photo]) facts.push(fact("Reason", el("bdi", {}, reason[photo])));
  if (path[photo] && path[photo] !== photos.id[photo]) facts.push(fact("Path", nameText(path[photo])));
  const edge = Math.abs(photos.mapLat[photo]) > EDGE_LATITUDE;
  if (edge) facts.push(fact("Drawn", "at the map's edge, which is at 85° of latitude"));
  return facts;
}

function statusName(photo) {
  const status = photos.status[photo];
  return Object.hasOwn(STATUS_NAMES, status) ? STATUS_NAMES[status] : status;
}

const placeLine = (place) => (place ? el("span", { class: "card-place" }, el("bdi", {}, place)) : null);

function candidateList(photo) {
  const rows = photos.candidates[photo].map(([name, lat, lon, similarity]) => {
    const known = isNumber(lat) && isNumber(lon) && hasPlace(photo);
    const far = known ? distanceKm(photos.mapLat[photo], photos.mapLon[photo], lat, lon) : NaN;
    return el(
      "li",
      {},
      nameText(String(name ?? ""), "candidate-name"),
      el("span", { class: "candidate-similarity" }, formatScore(similarity)),
      el("span", { class: "candidate-far" }, formatKm(far)),
    );
  });
  const note = isEvaluation ? "similarity, distance from truth" : "similarity, distance from answer";
  return [
    el("p", { class: "card-sub" }, "Most similar", el("span", {}, note)),
    el("ol", { class: "candidates" }, ...rows),
  ];
}

function cardFooter(photo, stack, actions) {
  const buttons = [];
  const button = (label, work) => el("button", { type: "button", class: "link", click: work }, label);
  if (hasPlace(photo)) buttons.push(button(isEvaluation ? "Zoom to truth" : "Zoom here", actions.zoomToPoint));
  if (isEvaluation && hasAnswer(photo)) {
    buttons.push(button("Zoom to prediction", actions.zoomToAnswer), button("Show both", actions.zoomToBoth));
  }
  const footer = [el("div", { class: "card-actions" }, ...buttons)];
  if (stack.length > 1) {
    const place = stack.indexOf(photo);
    const step = (by) => () => actions.open(stack[(place + by + stack.length) % stack.length], stack);
    footer.push(
      el(
        "div",
        { class: "card-stack" },
        el("button", { type: "button", class: "button", "aria-label": "Previous photo here", click: step(-1) }, "‹"),
        `${formatCount(place + 1)} of ${formatCount(stack.length)} here`,
        el("button", { type: "button", class: "button", "aria-label": "Next photo here", click: step(1) }, "›"),
      ),
    );
  }
  return footer;
}

const isNarrow = (size) => size.x < 560;

// Puts the card beside a point, where there is room for it and within the map; one that is kept open goes to the map's
// side, out of the way of what it tells of. On a narrow map it lies at the bottom.
function placeCard(card, size, point, pinned) {
  card.classList.toggle("card-docked", isNarrow(size));
  if (isNarrow(size)) {
    card.style.left = card.style.top = "";
    return;
  }
  const [width, height] = [card.offsetWidth, card.offsetHeight];
  if (pinned) {
    const covered = point.x > size.x - width - 2 * CARD_GAP && point.y < height + 2 * CARD_GAP;
    card.style.left = `${covered ? 54 : size.x - width - 10}px`;
    card.style.top = "10px";
    return;
  }
  const right = point.x + CARD_GAP + width <= size.x || point.x < size.x / 2;
  const left = right ? point.x + CARD_GAP : point.x - CARD_GAP - width;
  const keep = (value, room) => Math.max(8, Math.min(value, room - 8));
  card.style.left = `${keep(left, size.x - width)}px`;
  card.style.top = `${keep(point.y - height / 3, size.y - height)}px`;
}

// The same in a sentence, for those who hear the page.
function spokenWords(photo) {
  const measure = Number.isNaN(photos.measure[photo])
    ? `${statusName(photo)}, ${measureName.toLowerCase()} not known`
    : `${measureName.toLowerCase()} ${formatKm(photos.measure[photo])}`;
  const answer = hasAnswer(photo) ? `, predicted ${formatPlace(photos.lat[photo], photos.lon[photo])}` : "";
  return `${photos.id[photo]}: ${measure}${answer}`;
}
