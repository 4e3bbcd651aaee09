"""To other tools and from them: LazySlide (`hggep_sc.interop.lazyslide`)."""
