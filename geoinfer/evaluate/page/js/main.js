// In the order in which a reader needs them.
showHead();
showSummary();
showTables();
showFigureGallery();
showContents();
setUpFilters();
setUpMap();
setUpList();
applyFilters();
document.documentElement.dataset.ready = "true";
